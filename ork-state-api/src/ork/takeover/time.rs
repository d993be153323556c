//! The forms of time that stand in databases of Ork.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

use crate::Timestamp;

/// Reads RFC 3339 with `T` or a space, any number of digits of a second, and an offset of the forms
/// `Z`, `+05:30`, `+0530` and `+05`, or none, which is UTC; or a date alone.
pub(super) fn read(text: &str) -> Option<Timestamp> {
    const WITH_OFFSET: [&str; 2] = ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z"];
    const WITHOUT: [&str; 2] = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    let text = text.trim().to_ascii_uppercase().replacen(' ', "T", 1);
    let text = text.strip_suffix(['Z', 'z']).map_or(text.clone(), |time| format!("{time}+00"));
    let with_offset = || {
        let parse = |form| DateTime::parse_from_str(&text, form).ok();
        WITH_OFFSET.into_iter().find_map(parse).map(|time| time.to_utc())
    };
    let without = || {
        let parse = |form| NaiveDateTime::parse_from_str(&text, form).ok();
        WITHOUT.into_iter().find_map(parse).map(|time| time.and_utc())
    };
    let date = || {
        let date = NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok()?;
        Some(date.and_time(chrono::NaiveTime::MIN).and_utc())
    };
    let time: DateTime<Utc> = with_offset().or_else(without).or_else(date)?;
    Timestamp::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("2026-02-01T11:23:51.947Z", "2026-02-01T11:23:51.947000Z")]
    #[case("2026-02-01 11:23:51", "2026-02-01T11:23:51.000000Z")]
    #[case("2026-02-01T11:23:51.947123456+00:00", "2026-02-01T11:23:51.947123Z")]
    #[case("2026-02-01 12:00+05:30", "2026-02-01T06:30:00.000000Z")]
    #[case("2026-02-01T12:00:00.5+0530", "2026-02-01T06:30:00.500000Z")]
    #[case("2026-02-01 11:23:51.947123+00", "2026-02-01T11:23:51.947123Z")]
    #[case("2026-02-01 11:23:51-08", "2026-02-01T19:23:51.000000Z")]
    #[case(" 2026-02-01T11:23Z ", "2026-02-01T11:23:00.000000Z")]
    #[case("2026-02-01t11:23:51z", "2026-02-01T11:23:51.000000Z")]
    #[case("2026-02-01", "2026-02-01T00:00:00.000000Z")]
    fn all_forms_are_read(#[case] text: &str, #[case] time: &str) {
        assert_eq!(read(text).unwrap().to_string(), time);
    }

    #[rstest]
    #[case("infinity")]
    #[case("-infinity")]
    #[case("")]
    #[case("yesterday")]
    #[case("1738400000")]
    #[case("2026-13-01 00:00:00")]
    #[case("2026-02-01 11:23:51 BC")]
    #[case("12026-02-01 11:23:51")]
    fn what_is_no_time_is_none(#[case] text: &str) {
        assert_eq!(read(text), None);
    }
}
