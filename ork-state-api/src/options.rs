//! Store URLs and what else a connection is made with.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::backend::Backend;
use crate::{Clock, Error, Result, SystemClock};

/// Where a store is and how to open it: a URL, and a clock if it is a test.
///
/// `Debug` shows neither credentials nor anything else of the URL but its scheme.
#[derive(Clone)]
pub struct ConnectOptions {
    url: StoreUrl,
    clock: Option<Arc<dyn Clock>>,
}

impl ConnectOptions {
    /// Options for this URL.
    ///
    /// # Errors
    /// `InvalidInput` for a text that is no URL of a store.
    pub fn new(url: &str) -> Result<Self> {
        Ok(Self { url: url.parse()?, clock: None })
    }

    /// Replaces the store's time, for every statement that depends on it (rule G4).
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The URL.
    #[must_use]
    pub const fn url(&self) -> &StoreUrl {
        &self.url
    }

    /// The injected clock, for backends whose server has one of its own.
    #[must_use]
    pub fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.clock.clone()
    }

    /// The injected clock or else this machine's, for backends without a server.
    #[must_use]
    pub fn clock_or_system(&self) -> Arc<dyn Clock> {
        self.clock().unwrap_or_else(|| Arc::new(SystemClock::default()))
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions").field("url", &self.url).field("clock", &self.clock).finish()
    }
}

/// A store's URL in parts: `scheme:location?name=value&name=value`.
///
/// `Debug` shows the scheme only: the rest may hold credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    scheme: String,
    location: String,
    parameters: Vec<(String, String)>,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:…", self.scheme)
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| {
            Error::invalid("store URL", reason)
                .with_hint("A URL reads like `sqlite://ork.db`, `file:./dir`, `memory:` or `postgres://user@host/database`")
        };
        if text.contains('\0') {
            return Err(bad("contains a NUL byte"));
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad("has no scheme"))?;
        let scheme = scheme.to_ascii_lowercase();
        if !scheme.starts_with(|c: char| c.is_ascii_lowercase())
            || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        {
            return Err(bad("has no valid scheme"));
        }
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            parameters.push((name, value));
        }
        let is_double = |at: &usize| parameters[..*at].iter().any(|(name, _)| *name == parameters[*at].0);
        if let Some(at) = (0..parameters.len()).find(is_double) {
            return Err(match name_to_show(&parameters[at].0, &parameters) {
                Some(name) => bad(&format!("has the parameter `{name}` twice")),
                None => bad("has a parameter twice").with_hint(QUESTION_MARK),
            });
        }
        Ok(Self { scheme, location: location.to_owned(), parameters })
    }
}

const QUESTION_MARK: &str = "A `?` in a password must be written as `%3F`";

/// A parameter's name if it may be quoted: after a password with a `?` in it, what looks like
/// parameters is its other half.
fn name_to_show<'a>(name: &'a str, parameters: &[(String, String)]) -> Option<&'a str> {
    let is_plain = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    // Where there is such a half, the host comes after it.
    let has_host = parameters.iter().any(|(name, value)| name.contains('@') || value.contains('@'));
    Some(name).filter(|_| is_plain && !has_host)
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|source| {
        Error::invalid("store URL", "has a parameter that is not percent-encoded UTF-8").with_source(source)
    })?;
    if decoded.contains('\0') {
        return Err(Error::invalid("store URL", "contains a NUL byte"));
    }
    Ok(decoded.into_owned())
}

impl StoreUrl {
    /// What comes before the first colon, in lower case.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between the first colon and the question mark, as it was written.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The location as a path of the file system: percent-decoded, without a leading `//`.
    ///
    /// `file:./dir`, `file:dir` and `file:///var/dir` are what they look like; `sqlite://ork.db` is
    /// relative.
    ///
    /// # Errors
    /// `InvalidInput` for an empty path or a NUL byte.
    pub fn path(&self) -> Result<String> {
        let path = decode(self.location.strip_prefix("//").unwrap_or(&self.location))?;
        if path.is_empty() {
            return Err(Error::invalid("store URL", format!("names no path after `{}:`", self.scheme)));
        }
        Ok(path)
    }

    /// The query parameters, to be read by name, for a backend that knows these.
    ///
    /// # Errors
    /// `InvalidInput` for a parameter that the backend does not know; the message lists those it
    /// does.
    pub fn parameters(&self, backend: &Backend) -> Result<Parameters<'_>> {
        for (name, _) in &self.parameters {
            if !backend.options.iter().any(|option| option.name == name) {
                let known: Vec<String> = backend
                    .options
                    .iter()
                    .map(|option| format!("{} ({})", option.name, option.help))
                    .collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let known = format!("The {} backend knows: {known}", backend.name);
                return Err(match name_to_show(name, &self.parameters) {
                    Some(name) => Error::invalid("store URL", format!("has the unknown parameter `{name}`"))
                        .with_hint(known),
                    None => Error::invalid("store URL", "has a parameter that is not known")
                        .with_hint(format!("{QUESTION_MARK}. {known}")),
                });
            }
        }
        Ok(Parameters { parameters: &self.parameters })
    }
}

/// The query parameters of a URL, read by name. Every reader's error names the parameter and what
/// it takes.
///
/// `Debug` shows the names only: a value may be a password.
#[derive(Clone, Copy)]
pub struct Parameters<'a> {
    parameters: &'a [(String, String)],
}

impl fmt::Debug for Parameters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parameters.iter().map(|(name, _)| name)).finish()
    }
}

impl<'a> Parameters<'a> {
    /// The text of a parameter.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// A whole number within a range.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| wrong(name, text, &expected()))
    }

    /// A duration such as `250ms`, `30s` or `5m`, within a range.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn duration(&self, name: &str, range: RangeInclusive<Duration>) -> Result<Option<Duration>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: Option<u64> = text[..digits].parse().ok();
        let duration = number.and_then(|number| match &text[digits..] {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            _ => None,
        });
        let expected = || {
            format!(
                "a duration from {:?} to {:?}, such as `250ms`, `30s` or `5m`",
                range.start(),
                range.end()
            )
        };
        duration
            .filter(|duration| range.contains(duration))
            .map(Some)
            .ok_or_else(|| wrong(name, text, &expected()))
    }

    /// One of several words, with what it stands for.
    ///
    /// # Errors
    /// `InvalidInput` for any other.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let expected = || {
            let words: Vec<String> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
            format!("one of {}", words.join(", "))
        };
        choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|&(_, meaning)| Some(meaning))
            .ok_or_else(|| wrong(name, text, &expected()))
    }

    /// The parameters as they are, decoded.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn wrong(name: &str, value: &str, expected: &str) -> Error {
    // After a password with a `?` in it, a value may be its other half, with the host behind it.
    if value.contains('@') {
        return Error::invalid("store URL", format!("has a value of `{name}` that is not {expected}"))
            .with_hint(QUESTION_MARK);
    }
    let shown: String = value.chars().take(40).collect();
    Error::invalid("store URL", format!("has `{name}={shown}`, it takes {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("memory:", "memory", "", 0)]
    #[case("SQLite://a.db?x=1&y", "sqlite", "//a.db", 2)]
    #[case("file:./dir", "file", "./dir", 0)]
    #[case("postgres://u:p%40@h:5432/db?schema=a%20b", "postgres", "//u:p%40@h:5432/db", 1)]
    fn good(#[case] text: &str, #[case] scheme: &str, #[case] location: &str, #[case] parameters: usize) {
        let url: StoreUrl = text.parse().unwrap();
        assert_eq!((url.scheme(), url.location(), url.parameters.len()), (scheme, location, parameters));
    }

    #[rstest]
    #[case("")]
    #[case("no scheme")]
    #[case(":x")]
    #[case("1a:x")]
    #[case("a b:x")]
    #[case("file:a\0b")]
    #[case("file:a?x=%00")]
    #[case("file:a?x=%ff")]
    #[case("file:a?x=1&x=2")]
    fn bad(#[case] text: &str) {
        assert!(text.parse::<StoreUrl>().is_err());
    }

    #[rstest]
    #[case("file:./dir", Some("./dir"))]
    #[case("file:///var/lib/ork", Some("/var/lib/ork"))]
    #[case("sqlite://a%20b.db", Some("a b.db"))]
    #[case("file:", None)]
    #[case("file://", None)]
    #[case("file:a%00", None)]
    fn paths(#[case] text: &str, #[case] path: Option<&str>) {
        assert_eq!(text.parse::<StoreUrl>().unwrap().path().ok().as_deref(), path);
    }

    #[rstest]
    #[case("250ms", Some(250))]
    #[case("30s", Some(30_000))]
    #[case("5m", Some(300_000))]
    #[case("30", None)]
    #[case("s", None)]
    #[case("-1s", None)]
    #[case("1h", None)]
    #[case("99999999999999999999s", None)]
    #[case("999999999999999999m", None)]
    #[case("6m", None)]
    fn durations(#[case] text: &str, #[case] millis: Option<u64>) {
        let url: StoreUrl = format!("memory:?t={text}").parse().unwrap();
        let parameters = Parameters { parameters: &url.parameters };
        let read = parameters.duration("t", Duration::ZERO..=Duration::from_secs(300));
        assert_eq!(read.ok().flatten(), millis.map(Duration::from_millis));
        assert_eq!(parameters.duration("absent", Duration::ZERO..=Duration::MAX).unwrap(), None);
    }

    #[rstest]
    #[case::unknown("postgres://me:se?cret@h/db")]
    #[case::twice("postgres://me:se?cret@h/db&cret@h/db")]
    #[case::looks_like_a_name("postgres://me:se?cret&x@h/db")]
    #[case::looks_like_a_pair("postgres://me:se?cret=cret@h/db")]
    #[case::looks_like_a_name_twice("postgres://me:se?cret&cret&x@h/db")]
    #[case::no_text("postgres://me:se?cret%ff@h/db")]
    fn half_a_password_does_not_show(#[case] url: &str) {
        let error = url.parse().and_then(|url: StoreUrl| url.parameters(&BACKEND).map(drop)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("cret"), "{error}");
    }

    #[test]
    fn half_a_password_does_not_show_as_a_value() {
        let url: StoreUrl = "postgres://me:se?port=cret@h/db".parse().unwrap();
        let error = Parameters { parameters: &url.parameters }.number("port", 1..=9).unwrap_err();
        assert!(!error.to_string().contains("cret"), "{error}");
    }

    #[rstest]
    #[case("memory:?schema=a", "has the unknown parameter `schema`")]
    #[case("memory:?Schema", "has a parameter that is not known")]
    #[case("memory:?a=1&a=2", "has the parameter `a` twice")]
    #[case("memory:?A=1&A=2", "has a parameter twice")]
    #[case("memory:?a@=1", "`?` in a password must be written as `%3F`")]
    fn a_parameter_is_named_if_it_is_a_name(#[case] url: &str, #[case] says: &str) {
        let error = url.parse().and_then(|url: StoreUrl| url.parameters(&BACKEND).map(drop)).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }

    static BACKEND: Backend = Backend {
        name: "test",
        package: "test",
        schemes: &["memory", "postgres"],
        example: "memory:",
        capabilities: crate::backend::Capabilities::all(),
        options: &[],
        connect: |_| Box::pin(async { Err(Error::internal("a test connects to nothing")) }),
    };

    #[test]
    fn credentials_do_not_show() {
        let options = ConnectOptions::new("postgres://me:secret@h/db?password=secret").unwrap();
        assert!(!format!("{options:?}").contains("secret"));
        let parameters = Parameters { parameters: &options.url.parameters };
        assert_eq!(format!("{parameters:?}"), "[\"password\"]");
    }
}
