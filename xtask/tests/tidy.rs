//! Conventions of the workspace that no compiler checks. Each test lists everything that it finds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{Visit, visit_item_mod, visit_path};
use syn::{ItemMod, UseTree};

/// The crates whose modules must not import each other in a ring.
const CRATES: &[&str] = &[
    "ork-state-api",
    "ork-state-conformance",
    "ork-state-conformance/example-backend",
    "ork-state-file",
    "ork-state-postgres",
    "ork-state-sqlite",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Modules by name, such as `journal::files`, with what each imports.
///
/// A name that a crate's root re-exports counts as an import of its module. `ork-state-api` is an
/// exception. Its root and its interface for backends are the contract, whose types refer to each
/// other by nature (a backend opens stores, a store names its backend).
fn imports(source: &Path, roots_count: bool) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = BTreeMap::new();
    collect(source, "", &mut files);
    let root = files.remove("").unwrap();
    let given = if roots_count { given_out(&root) } else { BTreeMap::new() };
    if !roots_count {
        files.remove("backend");
    }
    let names: BTreeSet<String> = files.keys().cloned().collect();
    let resolve = |name: &str, path: Vec<String>| {
        let path = match path.first().and_then(|first| given.get(first)) {
            Some(module) if !names.contains(&path[0]) => module.clone(),
            _ => path,
        };
        let longest = (1..=path.len()).rev().map(|length| path[..length].join("::"));
        longest.into_iter().find(|module| names.contains(module)).filter(|module| module != name)
    };
    files
        .iter()
        .map(|(name, file)| {
            let mut paths = Paths { module: name.split("::").map(str::to_owned).collect(), found: vec![] };
            paths.visit_file(file);
            (name.clone(), paths.found.into_iter().filter_map(|path| resolve(name, path)).collect())
        })
        .collect()
}

fn collect(directory: &Path, prefix: &str, files: &mut BTreeMap<String, syn::File>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}::{name}") };
        if path.is_dir() {
            collect(&path, &full, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests" {
            let module = match name.as_str() {
                "lib" if prefix.is_empty() => String::new(),
                "mod" => prefix.to_owned(),
                _ => full,
            };
            files.insert(module, syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
        }
    }
}

/// The re-exports (`pub use`) of the root, each with its module.
fn given_out(root: &syn::File) -> BTreeMap<String, Vec<String>> {
    let uses = root.items.iter().filter_map(|item| match item {
        syn::Item::Use(item) if !matches!(item.vis, syn::Visibility::Inherited) => Some(&item.tree),
        _ => None,
    });
    let leaves = uses.flat_map(|tree| leaves(tree, vec![]));
    leaves
        .filter_map(|mut path| {
            let name = path.pop()?;
            path.retain(|part| part != "crate" && part != "self");
            Some((name, path)).filter(|(_, path)| !path.is_empty())
        })
        .collect()
}

fn leaves(tree: &UseTree, mut before: Vec<String>) -> Vec<Vec<String>> {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves(&path.tree, before)
        }
        UseTree::Group(group) => group.items.iter().flat_map(|tree| leaves(tree, before.clone())).collect(),
        UseTree::Name(name) => {
            before.push(name.ident.to_string());
            vec![before]
        }
        UseTree::Rename(name) => {
            before.push(name.ident.to_string());
            vec![before]
        }
        UseTree::Glob(_) => vec![before],
    }
}

struct Paths {
    module: Vec<String>,
    /// Paths from the crate's root.
    found: Vec<Vec<String>>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        let mut base = match path.first().map(String::as_str) {
            Some("crate") => return self.found.push(path[1..].to_vec()),
            Some("super") => self.module.clone(),
            _ => return,
        };
        let mut rest = path;
        while let Some("super") = rest.first().map(String::as_str) {
            base.pop();
            rest = &rest[1..];
        }
        self.found.push([&base, rest].concat());
    }
}

impl Visit<'_> for Paths {
    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        leaves(&item.tree, vec![]).iter().for_each(|path| self.add(path));
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.add(&path.segments.iter().map(|part| part.ident.to_string()).collect::<Vec<_>>());
        visit_path(self, path);
    }

    /// Imports of tests are not part of the crate's structure.
    fn visit_item_mod(&mut self, module: &ItemMod) {
        let is_test = module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|option| option.is_ident("test"))
        });
        if !is_test {
            visit_item_mod(self, module);
        }
    }
}

/// Siblings that reach each other. A directory counts as one module beside its siblings. Its own
/// modules are checked among themselves.
fn rings(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let parents: BTreeSet<&str> =
        imports.keys().map(|name| name.rsplit_once("::").map_or("", |(parent, _)| parent)).collect();
    let mut found = Vec::new();
    for parent in parents {
        let sibling = |name: &str| {
            let rest =
                if parent.is_empty() { name } else { name.strip_prefix(parent)?.strip_prefix("::")? };
            rest.split("::").next().map(str::to_owned)
        };
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, targets) in imports {
            let Some(from) = sibling(name) else { continue };
            let to = targets.iter().filter_map(|target| sibling(target)).filter(|to| *to != from);
            graph.entry(from.clone()).or_default().extend(to);
        }
        // A module that no other needs, or that needs no other, is in no ring.
        loop {
            let before = graph.len();
            let needed: BTreeSet<String> = graph.values().flatten().cloned().collect();
            graph.retain(|name, targets| !targets.is_empty() && needed.contains(name));
            let left: BTreeSet<String> = graph.keys().cloned().collect();
            graph.values_mut().for_each(|targets| targets.retain(|target| left.contains(target)));
            if graph.len() == before {
                break;
            }
        }
        if !graph.is_empty() {
            let within =
                |name: &String| if parent.is_empty() { name.clone() } else { format!("{parent}::{name}") };
            found.push(graph.keys().map(within).collect());
        }
    }
    found
}

#[test]
fn no_modules_import_each_other_in_a_ring() {
    let mut found = Vec::new();
    for name in CRATES {
        let imports = imports(&workspace().join(name).join("src"), *name != "ork-state-api");
        assert!(imports.len() > 1, "{name} has modules");
        found.extend(rings(&imports).into_iter().map(|ring| format!("{name}: {}", ring.join(", "))));
    }
    assert!(found.is_empty(), "modules that import each other in a ring:\n  {}", found.join("\n  "));
}

#[test]
fn a_ring_is_seen() {
    let ring = |edges: &[(&str, &str)]| {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            imports.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            imports.entry((*to).to_owned()).or_default();
        }
        rings(&imports)
    };
    assert_eq!(ring(&[("a", "b"), ("b", "c")]), Vec::<Vec<String>>::new());
    assert_eq!(ring(&[("a", "b"), ("b", "c"), ("c", "b")]), [["b", "c"]]);
    // A directory is one module to its siblings. Its own modules are checked too.
    assert_eq!(ring(&[("a", "d::x"), ("d::y", "a")]), [["a", "d"]]);
    assert_eq!(ring(&[("d::x", "d::y"), ("d::y", "d::x")]), [["d::x", "d::y"]]);
    assert_eq!(ring(&[("d::x", "d")]), Vec::<Vec<String>>::new());
}

#[test]
fn imports_are_read_as_rust_reads_them() {
    let file = syn::parse_str(
        "use crate::{a::B, c::{D, self as e}}; use super::f::G;
         fn h() { crate::i::j(); super::k::l(); std::m::n(); }
         #[cfg(test)] mod tests { use crate::o::P; }",
    );
    let mut paths = Paths { module: vec!["x".into(), "y".into()], found: vec![] };
    paths.visit_file(&file.unwrap());
    let found: Vec<String> = paths.found.iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a::B", "c::D", "c::self", "x::f::G", "i::j", "x::k::l"]);
}

/// Generated pages, whose lines may have any length.
const GENERATED: &[&str] = &["SCHEMA.md"];
/// The greatest width of comments and pages.
const WIDTH: usize = 100;

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "report" {
            files(&path, found);
        } else if (name.ends_with(".rs") || name.ends_with(".md")) && !GENERATED.contains(&name) {
            found.push(path);
        }
    }
}

/// Whether this line of prose is too wide and could be broken.
fn is_too_wide(line: &str, text: &str) -> bool {
    let has_a_break = text.trim().char_indices().any(|(at, c)| c == ' ' && at > 0 && at < WIDTH / 2);
    let is_table_or_target = text.trim_start().starts_with(['|', '<', '#', '[']) && !text.contains(". ");
    line.chars().count() > WIDTH && has_a_break && !is_table_or_target
}

#[test]
fn comments_and_pages_are_wrapped() {
    let mut all = Vec::new();
    files(&workspace(), &mut all);
    let mut found = Vec::new();
    for path in all {
        let is_page = path.extension().is_some_and(|extension| extension == "md");
        let mut in_code = false;
        for (number, line) in (1..).zip(fs::read_to_string(&path).unwrap().lines()) {
            let text = if is_page {
                line
            } else {
                let trimmed = line.trim_start();
                let markers = ["///", "//!", "//"];
                let Some(text) = markers.iter().find_map(|marker| trimmed.strip_prefix(marker)) else {
                    in_code = false;
                    continue;
                };
                text
            };
            if text.trim_start().starts_with("```") {
                in_code = !in_code;
            } else if !in_code && is_too_wide(line, text) {
                found.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "wider than {WIDTH} columns:\n  {}", found.join("\n  "));
}

/// The doctest of the SQLite crate compiles the example.
#[test]
fn the_first_example_is_one_that_compiles() {
    let example = |page: &str| {
        let text = fs::read_to_string(workspace().join(page)).unwrap();
        let begin = text.find("```rust\n").unwrap_or_else(|| panic!("{page} has an example"));
        text[begin..].split("\n```").next().unwrap().to_owned()
    };
    assert_eq!(example("README.md"), example("ork-state-sqlite/README.md"));
}

/// SECURITY.md promises nothing without a test. It names each test by its file.
#[test]
fn every_promise_about_security_is_kept_by_a_test() {
    let page = fs::read_to_string(workspace().join("SECURITY.md")).unwrap();
    let named: Vec<(&str, &str)> = page
        .split('`')
        .filter_map(|text| text.split_once(".rs::"))
        .filter(|(file, _)| !file.is_empty())
        .collect();
    assert!(named.len() > 10, "{named:?}");
    let is_there = |file: &str, function: &str| {
        let text = fs::read_to_string(workspace().join(format!("{file}.rs"))).unwrap_or_default();
        [format!("fn {function}("), format!(" {function}(t")].iter().any(|it| text.contains(it))
    };
    let missing: Vec<_> = named.iter().filter(|(file, function)| !is_there(file, function)).collect();
    assert!(missing.is_empty(), "there is no {missing:#?}");
}
