#![doc = include_str!("GUIDE.md")]

mod steps;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub use steps::{Plan, STEPS, Step};

/// Names that are taken, by the crates of this workspace or by what they register.
const TAKEN: &[&str] = &["api", "conformance", "example", "file", "memory", "model", "postgres", "sqlite"];

/// The longest name in bytes. It is part of a crate's name and of every URL.
const MAX_NAME_BYTES: usize = 32;

/// The files of a crate, each with its template.
const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    (".gitignore", "/target\n"),
    ("README.md", include_str!("template/README.md.in")),
    ("src/lib.rs", include_str!("template/lib.rs.in")),
    ("src/state.rs", include_str!("template/state.rs.in")),
    ("tests/conformance.rs", include_str!("template/conformance.rs.in")),
];

/// A crate for a new backend, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackend {
    name: String,
    directory: PathBuf,
}

/// Why no crate was written. No file was written unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NewBackendError {
    /// The name cannot be used for a crate and a URL scheme.
    #[error(
        "the name is {name:?}: it takes lower-case letters, digits and single hyphens between them, begins with a letter, and has at most {MAX_NAME_BYTES} bytes"
    )]
    BadName {
        /// The given name.
        name: String,
    },
    /// There is a backend or a crate with that name.
    #[error("the name {name:?} is taken by ork-state itself")]
    NameTaken {
        /// The given name.
        name: String,
    },
    /// The crate's directory exists and is not empty.
    #[error("{} is there already and not empty", directory.display())]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// The suite does not run over its own model, so there is no plan.
    #[error("the plan cannot be made: {0}")]
    NoPlan(String),
    /// A file could not be written. The files before it are there.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl NewBackend {
    /// A crate `ork-state-NAME` in this directory, by default in a new one with that name here.
    /// Nothing is written yet.
    ///
    /// # Errors
    /// [`NewBackendError`] for a name or a directory that cannot be used.
    pub fn new(name: &str, directory: Option<&Path>) -> Result<Self, NewBackendError> {
        let name = name.to_owned();
        let parts_are_good = name.split('-').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        });
        if name.len() > MAX_NAME_BYTES
            || !name.starts_with(|c: char| c.is_ascii_lowercase())
            || !parts_are_good
        {
            return Err(NewBackendError::BadName { name });
        }
        if TAKEN.contains(&name.as_str()) {
            return Err(NewBackendError::NameTaken { name });
        }
        let directory = directory.map_or_else(|| PathBuf::from(format!("ork-state-{name}")), Path::to_owned);
        match std::fs::read_dir(&directory) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(NewBackendError::NotEmpty { directory });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(NewBackendError::Io { path: directory, source }),
        }
        Ok(Self { name, directory })
    }

    /// The directory of the crate.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the crate. The checklist in its README comes from running the suite over the
    /// [model](crate::model), which takes seconds.
    ///
    /// # Errors
    /// [`NewBackendError`]
    pub fn write(&self) -> Result<(), NewBackendError> {
        let checklist = checklist(&Plan::make().map_err(NewBackendError::NoPlan)?);
        for (path, template) in FILES {
            let path = self.directory.join(path);
            let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            written
                .and_then(|()| std::fs::write(&path, self.fill(template, &checklist)))
                .map_err(|source| NewBackendError::Io { path, source })?;
        }
        Ok(())
    }

    fn fill(&self, template: &str, checklist: &str) -> String {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        let beside = |name: &str| own.parent().unwrap_or(own).join(name).display().to_string();
        let camel: String = self.name.split('-').map(capitalized).collect();
        [
            ("{{name}}", self.name.as_str()),
            ("{{lib}}", &format!("ork_state_{}", self.name.replace('-', "_"))),
            ("{{Type}}", &format!("{camel}Database")),
            ("{{api}}", &toml_string(&beside("ork-state-api"))),
            ("{{conformance}}", &toml_string(&own.display().to_string())),
            ("{{checklist}}", checklist),
        ]
        .into_iter()
        .fold(template.to_owned(), |text, (mark, value)| text.replace(mark, value))
    }
}

/// Writes the crate with this name, and returns what to do next.
///
/// # Errors
/// [`NewBackendError`]
pub fn run(name: &str, directory: Option<&Path>) -> Result<String, NewBackendError> {
    let new = NewBackend::new(name, directory)?;
    new.write()?;
    let place = new.directory().display();
    Ok(format!(
        "{place}: a crate ork-state-{name} that compiles and registers itself. Next:\n  cd {place}\n  cargo test --test conformance\nWhat to write, step by step, is in its README.md."
    ))
}

/// A basic string of TOML. Its escapes are those of JSON.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_ascii_uppercase() + rest
}

/// The steps as a checklist.
fn checklist(plan: &Plan) -> String {
    let mut text = String::new();
    for (number, (step, cases)) in STEPS.iter().zip(plan.cases()).enumerate() {
        let tick = if step.is_given { 'x' } else { ' ' };
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, "- [{tick}] **{number}. {}**", step.title);
        let methods: Vec<String> = step.methods.iter().map(|method| format!("`{method}`")).collect();
        if !methods.is_empty() {
            let _ = write!(text, " {}", methods.join(", "));
        }
        let _ = writeln!(text, ".\n  {}", step.advice);
        let rules: Vec<String> = step.rules.iter().map(|rule| format!("{rule} ({})", rule.title())).collect();
        if !rules.is_empty() {
            let _ = writeln!(text, "  Rules: {}.", rules.join("; "));
        }
        if !cases.is_empty() {
            let count = if cases.len() == 1 { "1 case".to_owned() } else { format!("{} cases", cases.len()) };
            let _ = writeln!(text, "  <details><summary>{count} green with it</summary>\n");
            for case in cases {
                let _ = writeln!(text, "  - `{case}`");
            }
            let _ = writeln!(text, "  </details>");
        }
        text.push('\n');
    }
    text
}
