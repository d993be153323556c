//! Text that every backend can store: no NUL byte, and no longer than its kind allows.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LABEL_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES};
use crate::{Error, Result};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        ///
        /// Cheap to clone. Compared and ordered byte by byte.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// `InvalidInput` that says which of the type's conditions the text breaks.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self> {
                let text = text.into();
                $check(&text).map_err(|reason| Error::invalid($what, reason))?;
                Ok(Self(text))
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}
#[cfg(feature = "ork")]
pub(crate) use text;

text!(
    /// The name of a workflow: 1 to 255 bytes, no control characters. Case matters.
    WorkflowName, "workflow name", workflow_name
);
text!(
    /// The name of a task within its DAG: 1 to 255 bytes, no control characters, and usable as a
    /// file name, because executors make files after it: no `/` or `\`, neither `.` nor `..`.
    TaskName, "task name", task_name
);
text!(
    /// A short identifying text (owner of a lease, idempotency key, executor type, execution name,
    /// trigger): 1 to 1,024 bytes without NUL.
    Label, "label", label
);
text!(
    /// Free text (description, error message): up to 1 MiB without NUL.
    Text, "text", free_text
);

impl Text {
    /// Makes the best of any text, for what must be recorded whatever it holds, such as the error
    /// of a failed process: NUL becomes U+FFFD, and what is too long is cut with a note that says
    /// so.
    ///
    /// ```
    /// # use ork_state_api::Text;
    /// assert_eq!(Text::lossy("exit\0code").as_str(), "exit\u{fffd}code");
    /// ```
    #[must_use]
    pub fn lossy(text: &str) -> Self {
        const NOTE: &str = " [cut]";
        let mut clean = text.replace('\0', "\u{fffd}");
        if clean.len() > MAX_TEXT_BYTES {
            clean.truncate(clean.floor_char_boundary(MAX_TEXT_BYTES - NOTE.len()));
            clean.push_str(NOTE);
        }
        Self(clean.into())
    }
}

/// The empty text.
impl Default for Text {
    fn default() -> Self {
        Self("".into())
    }
}

impl Label {
    /// Makes the best of any text, for what must be kept whatever it holds: NUL becomes U+FFFD,
    /// what is too long is cut, and an empty one is `unknown`.
    #[must_use]
    pub fn lossy(text: &str) -> Self {
        let mut clean = text.replace('\0', "\u{fffd}");
        clean.truncate(clean.floor_char_boundary(MAX_LABEL_BYTES));
        Self(if clean.is_empty() { "unknown".into() } else { clean.into() })
    }

    /// A label of this crate's own, which is sound.
    pub(crate) fn constant(text: &'static str) -> Self {
        Self(text.into())
    }
}

pub(crate) type Check = std::result::Result<(), String>;

pub(crate) fn sized(text: &str, min: usize, max: usize) -> Check {
    match text.len() {
        0 if min > 0 => Err("is empty".into()),
        bytes if bytes > max => Err(format!("has {bytes} bytes, at most {max} are allowed")),
        _ => Ok(()),
    }
}

fn name(text: &str) -> Check {
    sized(text, 1, MAX_NAME_BYTES)?;
    no_control(text)
}

fn no_control(text: &str) -> Check {
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("{text:?} contains the control character {c:?}")),
        None => Ok(()),
    }
}

fn workflow_name(text: &str) -> Check {
    name(text)
}

fn task_name(text: &str) -> Check {
    sized(text, 1, MAX_NAME_BYTES)?;
    file_name(text)
}

/// What would name another place than a file of its directory.
pub(crate) fn file_name(text: &str) -> Check {
    no_control(text)?;
    if text == "." || text == ".." || text.contains(['/', '\\']) {
        return Err(format!("{text:?} cannot be a file name: no `/` or `\\`, neither `.` nor `..`"));
    }
    Ok(())
}

fn no_nul(text: &str) -> Check {
    match text.find('\0') {
        Some(at) => Err(format!("contains a NUL byte at offset {at}")),
        None => Ok(()),
    }
}

fn label(text: &str) -> Check {
    sized(text, 1, MAX_LABEL_BYTES)?;
    no_nul(text)
}

fn free_text(text: &str) -> Check {
    sized(text, 0, MAX_TEXT_BYTES)?;
    no_nul(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::plain("extract", true)]
    #[case::unicode("загрузка-✓", true)]
    #[case::dots_inside("a..b", true)]
    #[case::longest(&"x".repeat(255), true)]
    #[case::empty("", false)]
    #[case::too_long(&"x".repeat(256), false)]
    #[case::ten_megabytes(&"x".repeat(10_000_000), false)]
    #[case::nul("a\0b", false)]
    #[case::newline("a\nb", false)]
    #[case::parent("..", false)]
    #[case::escape("../../../escape", false)]
    #[case::backslash("a\\b", false)]
    fn task_names(#[case] text: &str, #[case] good: bool) {
        assert_eq!(TaskName::new(text).is_ok(), good);
    }

    #[rstest]
    #[case::slash("team/report", true)]
    #[case::tab("a\tb", false)]
    #[case::empty("", false)]
    fn workflow_names(#[case] text: &str, #[case] good: bool) {
        assert_eq!(WorkflowName::new(text).is_ok(), good);
    }

    #[test]
    fn lossy_text_fits_whatever_comes() {
        let text = Text::lossy(&"é\0".repeat(MAX_TEXT_BYTES));
        assert!(text.len() <= MAX_TEXT_BYTES && text.ends_with("[cut]"));
        assert!(Text::new(text.as_str()).is_ok());
    }

    #[test]
    fn lossy_labels_fit_whatever_comes() {
        for text in ["", "a\0b", &"é".repeat(MAX_LABEL_BYTES)] {
            assert!(Label::new(Label::lossy(text).as_str()).is_ok());
        }
    }

    #[test]
    fn an_error_about_a_huge_name_stays_short() {
        let error = TaskName::new("x".repeat(10_000_000)).unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
    }
}
