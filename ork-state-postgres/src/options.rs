//! The options of a store, from a URL or set by hand.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::backend::{Backend, Capabilities, OptionInfo, StoreUrl};
use ork_state_api::{Clock, ConnectOptions, Database, Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;

/// The backend's entry in the registry.
pub static BACKEND: Backend = Backend {
    name: "postgres",
    package: "ork_state_postgres",
    schemes: &["postgres", "postgresql"],
    example: "postgres://user:password@host:5432/database?schema=ork",
    capabilities: Capabilities::all(),
    options: OPTIONS,
    connect: |options| {
        Box::pin(async move {
            let database = PostgresOptions::from_url(&options)?.connect().await?;
            Ok(Arc::new(database) as Arc<dyn Database>)
        })
    },
};

/// Every parameter of the URL. Those after `max_log_bytes` are libpq's, and go to the driver
/// unchanged.
const OPTIONS: &[OptionInfo] = &[
    OptionInfo { name: "schema", help: "the schema that holds the store, default `public`" },
    OptionInfo {
        name: "max_connections",
        help: "the most connections of this process, 1 to 1000, default 10",
    },
    OptionInfo {
        name: "connect_timeout",
        help: "how long to wait for a connection, 100ms to 10m, default 10s",
    },
    OptionInfo {
        name: "call_timeout",
        help: "how long to wait for the server's answer before the connection is given up, 100ms to 60m, default 60s",
    },
    OptionInfo {
        name: "statement_timeout",
        help: "the longest a statement may take, 10ms to 60m, default that of the server",
    },
    OptionInfo {
        name: "lock_timeout",
        help: "the longest a statement may wait for a lock, 10ms to 60m, default that of the server",
    },
    OptionInfo { name: "max_log_bytes", help: "caps each task's log, 0 to 2^62, default no cap" },
    OptionInfo {
        name: "host",
        help: "instead of the URL's host; the directory of a Unix socket if it begins with `/`",
    },
    OptionInfo { name: "hostaddr", help: "the host's IP address" },
    OptionInfo { name: "port", help: "instead of the URL's port" },
    OptionInfo { name: "user", help: "instead of the URL's user" },
    OptionInfo { name: "password", help: "instead of the URL's password" },
    OptionInfo { name: "dbname", help: "instead of the URL's database" },
    OptionInfo {
        name: "sslmode",
        help: "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`, default `prefer`",
    },
    OptionInfo { name: "sslrootcert", help: "a file of certificates to trust" },
    OptionInfo { name: "sslcert", help: "a file with this client's certificate" },
    OptionInfo { name: "sslkey", help: "a file with this client's key" },
    OptionInfo { name: "application_name", help: "what the server's list of sessions shows" },
    OptionInfo { name: "options", help: "command-line options for the server's session" },
];

/// The [`OPTIONS`] that the driver reads.
const DRIVERS: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "application_name",
    "options",
];

const SSL_MODES: &[(&str, ())] = &[
    ("disable", ()),
    ("allow", ()),
    ("prefer", ()),
    ("require", ()),
    ("verify-ca", ()),
    ("verify-full", ()),
];

/// An hour. Anything longer is a job, not a statement.
pub(crate) const LONGEST_STATEMENT: Duration = Duration::from_secs(3600);

/// Where the store is and how to use it.
///
/// ```no_run
/// # use ork_state_postgres::PostgresOptions;
/// # use std::time::Duration;
/// # async fn connect() -> ork_state_api::Result<()> {
/// let database = PostgresOptions::new("postgres://ork@localhost/ork")?
///     .with_schema("ork")?
///     .with_max_connections(20)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// `Debug` shows host, port, database, user and schema, and no password.
#[derive(Clone)]
pub struct PostgresOptions {
    pub(crate) driver: PgConnectOptions,
    pub(crate) schema: Schema,
    pub(crate) max_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) call_timeout: Duration,
    pub(crate) statement_timeout: Option<Duration>,
    pub(crate) lock_timeout: Option<Duration>,
    pub(crate) max_log_bytes: Option<u64>,
    pub(crate) clock: Option<Arc<dyn Clock>>,
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("server", &self.place())
            .field("user", &self.driver.get_username())
            .field("schema", &self.schema.name())
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("call_timeout", &self.call_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("max_log_bytes", &self.max_log_bytes)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl PostgresOptions {
    /// Parses the options from this URL.
    ///
    /// # Errors
    /// `InvalidInput` for a text that is not a valid URL, an unknown parameter or a wrong value.
    /// The error names the parameter.
    pub fn new(url: &str) -> Result<Self> {
        Self::from_url(&ConnectOptions::new(url)?)
    }

    pub(crate) fn from_url(options: &ConnectOptions) -> Result<Self> {
        let url = options.url();
        if !BACKEND.schemes.contains(&url.scheme()) {
            return Err(Error::invalid("store URL", format!("has the scheme `{}`", url.scheme()))
                .with_hint(format!("A URL of this backend reads like `{}`", BACKEND.example)));
        }
        let parameters = url.parameters(&BACKEND)?;
        parameters.choice("sslmode", SSL_MODES)?;
        parameters.number("port", 1..=u64::from(u16::MAX))?;
        let timeout = |name| parameters.duration(name, Duration::from_millis(10)..=LONGEST_STATEMENT);
        let max_connections = parameters.number("max_connections", 1..=1000)?;
        Ok(Self {
            driver: driver_options(url)?,
            schema: Schema::new(parameters.text("schema").unwrap_or("public"))?,
            max_connections: max_connections.and_then(|number| u32::try_from(number).ok()).unwrap_or(10),
            connect_timeout: parameters
                .duration("connect_timeout", Duration::from_millis(100)..=Duration::from_secs(600))?
                .unwrap_or(Duration::from_secs(10)),
            call_timeout: parameters
                .duration("call_timeout", Duration::from_millis(100)..=LONGEST_STATEMENT)?
                .unwrap_or(Duration::from_secs(60)),
            statement_timeout: timeout("statement_timeout")?,
            lock_timeout: timeout("lock_timeout")?,
            max_log_bytes: parameters.number("max_log_bytes", 0..=1 << 62)?,
            clock: options.clock(),
        })
    }

    /// Sets the schema that holds the store. Any name will do. It need not exist before the store
    /// is migrated.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is not 1 to 63 bytes without NUL.
    pub fn with_schema(mut self, schema: &str) -> Result<Self> {
        self.schema = Schema::new(schema)?;
        Ok(self)
    }

    /// Sets the most connections that this process opens; at least one.
    #[must_use]
    pub fn with_max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Caps each task's log.
    #[must_use]
    pub const fn with_max_log_bytes(mut self, bytes: u64) -> Self {
        self.max_log_bytes = Some(bytes);
        self
    }

    /// Replaces the server's time, for tests (rule G4).
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The store's name in messages.
    pub(crate) fn place(&self) -> String {
        let server = match self.driver.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => self.driver.get_host().to_owned(),
        };
        let database = self.driver.get_database().unwrap_or_else(|| self.driver.get_username());
        format!("{server}:{}/{database}", self.driver.get_port())
    }

    /// The driver's options with the settings of our sessions. They all travel with the connection.
    pub(crate) fn session(&self) -> PgConnectOptions {
        let millis = |timeout: Duration| format!("{}ms", timeout.as_millis());
        // Functions rely on each of their statements seeing what was committed before it.
        let mut settings = vec![("default_transaction_isolation", "read committed".to_owned())];
        settings.extend(self.statement_timeout.map(|timeout| ("statement_timeout", millis(timeout))));
        settings.extend(self.lock_timeout.map(|timeout| ("lock_timeout", millis(timeout))));
        let driver = self.driver.clone().options(settings);
        match driver.get_application_name() {
            Some(_) => driver,
            None => driver.application_name("ork-state"),
        }
    }
}

/// Lets the driver parse its own parameters. Its errors show no credentials, but they do not name
/// what is wrong either. So whatever can be checked is checked before.
fn driver_options(url: &StoreUrl) -> Result<PgConnectOptions> {
    let parameters = url.parameters(&BACKEND)?;
    // The driver does not accept a user without a host, as in `//user@/database?host=/socket`.
    let location = match url.location().split_once("@/") {
        Some((user, path)) if parameters.text("host").is_some() => format!("{user}@localhost/{path}"),
        _ => url.location().to_owned(),
    };
    let mut text = format!("postgres:{location}");
    let mut separator = '?';
    for (name, value) in parameters.iter().filter(|(name, _)| DRIVERS.contains(name)) {
        text.push(separator);
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        separator = '&';
    }
    if !url.location().starts_with("//") {
        return Err(bad_url());
    }
    text.parse::<PgConnectOptions>().map_err(|source| bad_url().with_source(source))
}

fn bad_url() -> Error {
    Error::invalid("store URL", "is not one of a PostgreSQL database").with_hint(format!(
        "It reads like `{}`; special characters of the user and the password are percent-encoded",
        BACKEND.example
    ))
}

/// The name of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schema(String);

impl Schema {
    /// The longest identifier that PostgreSQL does not truncate.
    const MAX_BYTES: usize = 63;

    fn new(name: &str) -> Result<Self> {
        let reason = match name.len() {
            0 => "is empty".to_owned(),
            bytes if bytes > Self::MAX_BYTES => {
                format!("has {bytes} bytes, at most {} are allowed", Self::MAX_BYTES)
            }
            _ if name.contains('\0') => "contains a NUL byte".to_owned(),
            _ => return Ok(Self(name.to_owned())),
        };
        Err(Error::invalid("option `schema`", reason))
    }

    /// The name itself, to be bound as a value.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

/// As an identifier in SQL, always quoted.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("postgres://u:p@h:6543/db", "h:6543/db", "u", "public")]
    #[case("postgresql://u@h/db?schema=odd%20Schema", "h:5432/db", "u", "odd Schema")]
    #[case("postgres://u@/db?host=%2Ftmp%2Fsocket&port=1", "/tmp/socket:1/db", "u", "public")]
    #[case("postgres://u@%2Ftmp%2Fsocket/db", "/tmp/socket:5432/db", "u", "public")]
    #[case("postgres://u@h/db?user=other&dbname=d%26b", "h:5432/d&b", "other", "public")]
    fn urls(#[case] url: &str, #[case] place: &str, #[case] user: &str, #[case] schema: &str) {
        let options = PostgresOptions::new(url).unwrap();
        let read =
            (options.place(), options.driver.get_username().to_owned(), options.schema.name().to_owned());
        assert_eq!(read, (place.to_owned(), user.to_owned(), schema.to_owned()));
    }

    #[rstest]
    #[case("postgres:u@h/db", "PostgreSQL database")]
    #[case("postgres://u:p@h:port/db", "PostgreSQL database")]
    #[case("mysql://h/db", "scheme `mysql`")]
    #[case("postgres://h/db?schema=", "`schema` is empty")]
    #[case(&format!("postgres://h/db?schema={}", "x".repeat(64)), "has 64 bytes")]
    #[case("postgres://h/db?max_connections=0", "max_connections=0")]
    #[case("postgres://h/db?connect_timeout=5", "connect_timeout=5")]
    #[case("postgres://h/db?statement_timeout=1ms", "statement_timeout=1ms")]
    #[case("postgres://h/db?lock_timeout=soon", "lock_timeout=soon")]
    #[case("postgres://h/db?max_log_bytes=-1", "max_log_bytes=-1")]
    #[case("postgres://h/db?sslmode=maybe", "sslmode=maybe")]
    #[case("postgres://h/db?port=0", "port=0")]
    #[case("postgres://h/db?sslmod=require", "unknown parameter `sslmod`")]
    #[case("postgres://h/db?hostaddr=nowhere", "PostgreSQL database")]
    fn wrong_urls_name_what_is_wrong(#[case] url: &str, #[case] named: &str) {
        let error = PostgresOptions::new(url).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }

    #[rstest]
    #[case("postgres://u:sesame@h/db?max_connections=x")]
    #[case("postgres://u:sesame@h:x/db")]
    #[case("postgres://u:sesame@/db?password=sesame&port=99999")]
    #[case("postgres://u:sesame@h/db?hostaddr=x")]
    #[case("postgres://u:ses%ffame@h/db?x=sesame")]
    fn no_error_shows_the_password(#[case] url: &str) {
        let error = PostgresOptions::new(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }

    #[test]
    fn debug_shows_no_password() {
        let options = PostgresOptions::new("postgres://u:sesame@h/db?application_name=x").unwrap();
        let shown = format!("{options:?}");
        assert!(!shown.contains("sesame") && shown.contains("h:5432/db"), "{shown}");
    }

    #[rstest]
    #[case("ork", "\"ork\"")]
    #[case("odd Schema", "\"odd Schema\"")]
    #[case("x\"; DROP SCHEMA y; --", "\"x\"\"; DROP SCHEMA y; --\"")]
    fn schemas_are_quoted(#[case] name: &str, #[case] quoted: &str) {
        assert_eq!(Schema::new(name).unwrap().to_string(), quoted);
    }

    #[test]
    fn every_driver_option_is_listed() {
        assert!(DRIVERS.iter().all(|name| OPTIONS.iter().any(|option| option.name == *name)));
        assert_eq!(OPTIONS.len(), DRIVERS.len() + 7);
    }
}
