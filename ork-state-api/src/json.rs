//! JSON that comes out as it went in (rule G5).

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::limits::{MAX_JSON_BYTES, MAX_JSON_DEPTH};
use crate::{Error, Result};

/// A JSON value, kept as its text: valid, at most 16 MiB, nested at most 127 deep.
///
/// The text is what is stored and what comes back, byte for byte, so numbers such as `-0.0`,
/// `1e2`, or one of 20 digits survive, and so do the order of keys and white space. Two values are
/// equal when their texts are. Cheap to clone.
///
/// ```
/// # use ork_state_api::Json;
/// let json = Json::parse(r#"{"big": 12345678901234567890}"#)?;
/// assert_eq!(json.as_str(), r#"{"big": 12345678901234567890}"#);
/// assert_eq!(Json::from_value(&vec![1, 2])?.as_str(), "[1,2]");
/// # Ok::<(), ork_state_api::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Arc<str>);

impl Json {
    /// Takes JSON text. Surrounding white space is dropped.
    ///
    /// # Errors
    /// `InvalidInput` if it is not one JSON value, too long, or too deep.
    pub fn parse(text: impl Into<Arc<str>>) -> Result<Self> {
        let text = text.into();
        if text.len() > MAX_JSON_BYTES {
            let reason = format!("has {} bytes, at most {MAX_JSON_BYTES} are allowed", text.len());
            return Err(Error::invalid("JSON", reason));
        }
        // Depth first: it bounds what the parser below has to deal with.
        let depth = depth(&text);
        if depth > MAX_JSON_DEPTH {
            let reason = format!("is nested {depth} deep, at most {MAX_JSON_DEPTH} are allowed");
            return Err(Error::invalid("JSON", reason));
        }
        serde_json::from_str::<&RawValue>(&text)
            .map_err(|source| Error::invalid("JSON", "is not valid").with_source(source))?;
        let trimmed = text.trim_ascii();
        Ok(if trimmed.len() == text.len() { Self(text) } else { Self(trimmed.into()) })
    }

    /// JSON `null`.
    #[must_use]
    pub fn null() -> Self {
        Self("null".into())
    }

    /// Serialises a value.
    ///
    /// # Errors
    /// `InvalidInput` if it does not serialise to JSON, or is too long or too deep.
    pub fn from_value(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let text = serde_json::to_string(value)
            .map_err(|source| Error::invalid("JSON", "does not serialise").with_source(source))?;
        Self::parse(text)
    }

    /// Takes text that this crate wrote itself, which may be longer than a caller's.
    pub(crate) fn trusted(text: String) -> Self {
        Self(text.into())
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the text into a type of the caller's.
    ///
    /// # Errors
    /// `InvalidInput` if the value does not have that type's shape.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.0)
            .map_err(|source| Error::invalid("JSON", "does not have the expected shape").with_source(source))
    }
}

/// The nesting of brackets outside of strings. On text that is not JSON the answer means nothing,
/// and the parser says so next.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Serialises as the value itself; the text is kept where the format is `serde_json`'s.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(Box::<str>::from(raw)).map_err(D::Error::custom)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For `Option<Json>` fields, with `default`: a `null` that is there is a value, not an absence.
pub(crate) fn some<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// Says how long it is, not what is in it: payloads do not belong in logs.
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("-0.0")]
    #[case("1e2")]
    #[case("9007199254740993")]
    #[case("12345678901234567890")]
    #[case(r#"{"b": 1, "a": [ ] }"#)]
    #[case(r#""\u0000 \ud800 é""#)]
    #[case("null")]
    fn text_is_kept(#[case] text: &str) {
        assert_eq!(Json::parse(text).unwrap().as_str(), text);
        let there: Json =
            serde_json::from_str(&serde_json::to_string(&Json::parse(text).unwrap()).unwrap()).unwrap();
        assert_eq!(there.as_str(), text);
    }

    #[rstest]
    #[case::empty("")]
    #[case::two_values("1 2")]
    #[case::trailing("{} x")]
    #[case::raw_nul("\"\0\"")]
    #[case::too_deep(&format!("{}{}", "[".repeat(128), "]".repeat(128)))]
    #[case::very_deep(&"[".repeat(1_000_000))]
    #[case::too_long(&format!("\"{}\"", "x".repeat(17 * 1024 * 1024)))]
    fn bad_text_is_refused(#[case] text: &str) {
        assert!(Json::parse(text).is_err());
    }

    #[test]
    fn the_deepest_allowed_is_parsed_by_serde_json() {
        let text = format!("{}{}", "[".repeat(MAX_JSON_DEPTH), "]".repeat(MAX_JSON_DEPTH));
        assert!(Json::parse(text.as_str()).unwrap().to::<serde_json::Value>().is_ok());
        assert!(Json::parse(r#""[[[\"[[[""#).is_ok());
    }
}
