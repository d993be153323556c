//! Which plugins there are, and opening a store by its URL.

use std::sync::Arc;

use crate::backend::Backend;
use crate::{ConnectOptions, Database, Error, Result};

/// A plugin that was linked in. Made by [`register_backend!`](crate::register_backend).
#[doc(hidden)]
#[derive(Debug)]
pub struct Registration(pub &'static Backend);

inventory::collect!(Registration);

/// Registers a [`Backend`] at link time, from the crate that defines it.
///
/// ```
/// use ork_state_api::backend::{Backend, Capabilities};
/// use ork_state_api::{Error};
///
/// pub static BACKEND: Backend = Backend {
///     name: "nowhere",
///     package: "ork_state_nowhere",
///     schemes: &["nowhere"],
///     example: "nowhere:",
///     capabilities: Capabilities::all(),
///     options: &[],
///     connect: |_| Box::pin(async { Err(Error::unavailable("there is nothing")) }),
/// };
/// ork_state_api::register_backend!(BACKEND);
///
/// assert!(ork_state_api::Registry::linked()?.backends().any(|backend| backend.name == "nowhere"));
/// # Ok::<(), Error>(())
/// ```
///
/// A crate that is a dependency but never named is not linked, and its plugin silently missing: an
/// application names it with `use ork_state_nowhere as _;`.
#[macro_export]
macro_rules! register_backend {
    ($backend:path) => {
        $crate::__private::inventory::submit! { $crate::__private::Registration(&$backend) }
    };
}

/// Opens the store at this URL with the plugin that answers to its scheme, among those that are
/// linked.
///
/// Name the backend's crate once, or the linker drops it and its scheme is unknown. The store is
/// not [migrated](crate::Maintenance::migrate) yet.
///
/// ```ignore
/// use ork_state_sqlite as _; // links the backend
///
/// let db = ork_state_api::connect("sqlite://ork.db").await?;
/// db.migrate().await?;
/// ```
///
/// # Errors
/// `InvalidInput` for a bad URL, an unknown scheme or option: the message says what there is.
/// `Unavailable` when the store cannot be reached or opened, `SchemaMismatch` when it is newer than
/// the code.
pub async fn connect(url: &str) -> Result<Arc<dyn Database>> {
    Registry::linked()?.connect(ConnectOptions::new(url)?).await
}

/// A set of plugins.
///
/// [`linked`](Self::linked) is what the linker brought. Where that is not to be relied on, such as
/// in a static library that C links, name them: `Registry::new().with(&ork_state_sqlite::BACKEND)`.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    backends: Vec<&'static Backend>,
}

impl Registry {
    /// No plugins.
    #[must_use]
    pub const fn new() -> Self {
        Self { backends: Vec::new() }
    }

    /// All plugins that are linked in.
    ///
    /// # Errors
    /// `Conflict` if two of them have one name or answer to one scheme; it names both.
    pub fn linked() -> Result<Self> {
        inventory::iter::<Registration>().try_fold(Self::new(), |all, registration| all.with(registration.0))
    }

    /// Adds a plugin. One that is there already, the very same, is not added twice.
    ///
    /// # Errors
    /// `Conflict` if another has its name or answers to one of its schemes; it names both.
    pub fn with(mut self, backend: &'static Backend) -> Result<Self> {
        for &other in &self.backends {
            if std::ptr::eq(other, backend) {
                return Ok(self);
            }
            let shared = backend.schemes.iter().find(|scheme| other.schemes.contains(scheme));
            let what = match shared {
                Some(scheme) => format!("answer to the scheme `{scheme}`"),
                None if other.name == backend.name => format!("are called `{}`", backend.name),
                None => continue,
            };
            let mut packages = [other.package, backend.package];
            packages.sort_unstable();
            let [first, second] = packages;
            return Err(Error::conflict(format!("the plugins of `{first}` and `{second}` both {what}"))
                .with_hint("Link only one of them"));
        }
        // The linker's order is not specified.
        let at = self.backends.partition_point(|other| other.name < backend.name);
        self.backends.insert(at, backend);
        Ok(self)
    }

    /// The plugins, by name.
    pub fn backends(&self) -> impl Iterator<Item = &'static Backend> {
        self.backends.iter().copied()
    }

    /// The plugin that answers to this scheme.
    ///
    /// # Errors
    /// `InvalidInput` that says which there are, and how to link another.
    pub fn by_scheme(&self, scheme: &str) -> Result<&'static Backend> {
        self.backends().find(|backend| backend.schemes.contains(&scheme)).ok_or_else(|| {
            let there: Vec<String> =
                self.backends().map(|backend| format!("{} ({})", backend.name, backend.example)).collect();
            let there = if there.is_empty() { "none at all".to_owned() } else { there.join(", ") };
            let shown: String = scheme.chars().take(40).collect();
            let package = match shown.as_str() {
                "memory" => "file",
                "postgresql" => "postgres",
                other => other,
            };
            Error::invalid("store URL", format!("has the scheme `{shown}`, which no linked plugin answers to")).with_hint(format!(
                "Linked are: {there}. A plugin is linked by its dependency and one line, such as `use ork_state_{package} as _;`"
            ))
        })
    }

    /// Opens a store.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(&self, options: ConnectOptions) -> Result<Arc<dyn Database>> {
        let backend = self.by_scheme(options.url().scheme())?;
        // Checked here so that no plugin can forget it.
        options.url().parameters(backend)?;
        (backend.connect)(options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Capabilities, OptionInfo};
    use rstest::rstest;

    const fn backend(name: &'static str, package: &'static str, schemes: &'static [&'static str]) -> Backend {
        Backend {
            name,
            package,
            schemes,
            example: "x:",
            capabilities: Capabilities::all(),
            options: &[OptionInfo { name: "sync", help: "`full` or `off`" }],
            connect: |_| Box::pin(async { Err(Error::unavailable("a test")) }),
        }
    }

    static A: Backend = backend("a", "crate_a", &["a", "aa"]);
    static B: Backend = backend("b", "crate_b", &["b"]);
    static SAME_NAME: Backend = backend("a", "crate_c", &["c"]);
    static SAME_SCHEME: Backend = backend("d", "crate_d", &["aa"]);

    #[test]
    fn plugins_are_sorted_and_none_is_added_twice() {
        let registry = Registry::new().with(&B).unwrap().with(&A).unwrap().with(&B).unwrap();
        assert_eq!(registry.backends().map(|b| b.name).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[rstest]
    #[case(&SAME_NAME, "crate_c")]
    #[case(&SAME_SCHEME, "crate_d")]
    fn a_clash_names_both(#[case] other: &'static Backend, #[case] package: &str) {
        let message = Registry::new().with(&A).unwrap().with(other).unwrap_err().to_string();
        assert!(message.contains("crate_a") && message.contains(package), "{message}");
    }

    #[test]
    fn an_unknown_scheme_says_what_there_is_and_how_to_link_more() {
        let message = Registry::new().with(&A).unwrap().by_scheme("sqlite").unwrap_err().to_string();
        assert!(message.contains("a (x:)") && message.contains("use ork_state_sqlite as _;"), "{message}");
    }

    #[test]
    fn an_unknown_parameter_says_which_there_are() {
        let options = ConnectOptions::new("a:?sink=full").unwrap();
        let message = options.url().parameters(&A).unwrap_err().to_string();
        assert!(message.contains("`sink`") && message.contains("sync (`full` or `off`)"), "{message}");
    }
}
