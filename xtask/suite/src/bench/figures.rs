//! The results, and how they are printed and stored.

use std::fmt::Write as _;

use serde::Serialize;

/// The result of one scenario on one backend.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// The row in the table of targets, such as `P1`.
    pub(super) target: &'static str,
    pub(super) scenario: String,
    /// What the scenario does, in a sentence.
    pub(super) title: &'static str,
    pub(super) backend: String,
    /// Its parameters: sizes, numbers of callers.
    pub(super) parameters: Vec<(&'static str, String)>,
    pub(super) series: Vec<Series>,
    pub(super) verdicts: Vec<Verdict>,
    /// The total duration.
    pub(super) seconds: f64,
}

/// A line of a plot.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) unit: &'static str,
    /// The variable on the horizontal axis.
    pub(super) over: &'static str,
    pub(super) points: Vec<Point>,
}

#[derive(Debug, Serialize)]
pub(super) struct Point {
    pub(super) at: f64,
    #[serde(flatten)]
    pub(super) spread: Spread,
}

/// Samples in three numbers. Of few samples, the least and the greatest are shown. Of many, the
/// lowest and the highest tenth are left out.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) samples: usize,
}

impl Spread {
    pub(super) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().saturating_sub(1);
        let at = |tenths: usize| samples.get((last * tenths + 5) / 10).copied().unwrap_or(f64::NAN);
        let (low, high) = if samples.len() < 10 { (at(0), at(10)) } else { (at(1), at(9)) };
        Self { median: at(5), low, high, samples: samples.len() }
    }
}

/// A figure and its target.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) figure: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wanted: Option<Wanted>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
}

impl Verdict {
    pub(super) fn new(
        figure: impl Into<String>,
        value: f64,
        unit: &'static str,
        wanted: impl Into<Option<Wanted>>,
    ) -> Self {
        Self { figure: figure.into(), value, unit, wanted: wanted.into() }
    }

    /// `None` where there is no target.
    pub(super) fn is_met(&self) -> Option<bool> {
        Some(match self.wanted? {
            Wanted::AtMost(limit) => self.value <= limit,
            Wanted::AtLeast(limit) => self.value >= limit,
        })
    }

    pub(super) fn wanted_text(&self) -> String {
        match self.wanted {
            None => String::new(),
            Some(Wanted::AtMost(limit)) => format!("≤ {}", number(limit)),
            Some(Wanted::AtLeast(limit)) => format!("≥ {}", number(limit)),
        }
    }

    pub(super) const fn mark(met: Option<bool>) -> &'static str {
        match met {
            None => "",
            Some(true) => "met",
            Some(false) => "MISSED",
        }
    }
}

/// Where and with what it was measured.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    pub(super) version: &'static str,
    pub(super) commit: String,
    pub(super) build: &'static str,
    pub(super) os: &'static str,
    pub(super) cores: usize,
    /// The duration of one append of 4 KiB and one fdatasync, in ms: the least that a commit costs.
    pub(super) fdatasync: Spread,
    /// Whether sizes were reduced, to check only that everything works.
    pub(super) quick: bool,
    /// Where each backend's stores came from.
    pub(super) origins: Vec<(String, String)>,
    /// Seconds since 1970.
    pub(super) started: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Results {
    pub(super) facts: Facts,
    pub(super) outcomes: Vec<Outcome>,
}

impl Results {
    /// One page per scenario: its file name, and its text.
    pub(super) fn pages(&self) -> Vec<(String, String)> {
        let scenarios = self.outcomes.chunk_by(|one, next| one.scenario == next.scenario);
        scenarios
            .filter_map(|outcomes| {
                let first = outcomes.first()?;
                let mut text = String::new();
                // Writing to a string cannot fail.
                let _ = self.write_page(&mut text, first, outcomes);
                Some((format!("{}-{}.md", first.target.to_lowercase(), first.scenario), text))
            })
            .collect()
    }

    fn write_page(&self, text: &mut String, first: &Outcome, outcomes: &[Outcome]) -> std::fmt::Result {
        let Facts { version, commit, build, os, cores, fdatasync, quick, origins, .. } = &self.facts;
        writeln!(text, "# {} {}\n\n{}.\n", first.target, first.scenario, wrapped(first.title))?;
        writeln!(text, "- ork-state {version} ({commit}), {build} build, {os}, {cores} cores")?;
        writeln!(text, "- an append of 4 KiB with fdatasync: {} ms", number(fdatasync.median))?;
        for (backend, origin) in origins {
            writeln!(text, "- {backend}: {origin}")?;
        }
        if *quick {
            writeln!(text, "- **sizes were cut down: not to be quoted**")?;
        }
        if outcomes.iter().any(|outcome| !outcome.verdicts.is_empty()) {
            writeln!(text, "\n| backend | figure | measured | target | |\n|---|---|---:|---|---|")?;
        }
        for outcome in outcomes {
            for verdict in &outcome.verdicts {
                writeln!(
                    text,
                    "| {} | {} | {} {} | {} | {} |",
                    outcome.backend,
                    verdict.figure,
                    number(verdict.value),
                    verdict.unit,
                    verdict.wanted_text(),
                    Verdict::mark(verdict.is_met()),
                )?;
            }
        }
        for outcome in outcomes {
            writeln!(text, "\n## {}", outcome.backend)?;
            for (index, (name, value)) in outcome.parameters.iter().enumerate() {
                writeln!(text, "{}- {name}: {value}", if index == 0 { "\n" } else { "" })?;
            }
            for series in &outcome.series {
                writeln!(
                    text,
                    "\n| {} | {}, {} | low | high | samples |\n|---:|---:|---:|---:|---:|",
                    series.over, series.name, series.unit
                )?;
                for Point { at, spread: Spread { median, low, high, samples } } in &series.points {
                    writeln!(
                        text,
                        "| {} | {} | {} | {} | {samples} |",
                        number(*at),
                        number(*median),
                        number(*low),
                        number(*high)
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Wraps prose in lines of at most 100 columns, as in all pages.
fn wrapped(prose: &str) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in prose.split_whitespace() {
        let width = word.chars().count();
        if column > 0 {
            let fits = column + 1 + width < 100;
            text.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        text.push_str(word);
        column += width;
    }
    text
}

/// Shows three digits that matter, and separates thousands.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if !size.is_finite() {
        return "?".to_owned();
    }
    if size < 100.0 && size.fract() != 0.0 {
        let digits = if size < 1.0 {
            3
        } else if size < 10.0 {
            2
        } else {
            1
        };
        return format!("{value:.digits$}");
    }
    let whole = format!("{size:.0}");
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0.0, "0")]
    #[case(0.1234, "0.123")]
    #[case(1.234, "1.23")]
    #[case(12.34, "12.3")]
    #[case(999.6, "1,000")]
    #[case(1_234_567.0, "1,234,567")]
    #[case(-1234.0, "-1,234")]
    #[case(f64::NAN, "?")]
    fn numbers(#[case] value: f64, #[case] text: &str) {
        assert_eq!(number(value), text);
    }

    #[test]
    fn prose_is_wrapped() {
        let text = wrapped(&"four ".repeat(100));
        assert!(text.lines().all(|line| line.len() < 100) && text.lines().count() == 5, "{text}");
    }

    #[test]
    fn a_spread_leaves_out_the_ends_of_many_samples_and_not_of_few() {
        let few = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((few.low, few.median, few.high), (1.0, 2.0, 3.0));
        let many = Spread::of((0..=100).map(f64::from).collect());
        assert_eq!((many.low, many.median, many.high), (10.0, 50.0, 90.0));
        assert!(Spread::of(vec![]).median.is_nan());
    }

    #[test]
    fn a_figure_meets_its_target_or_not() {
        let is_met = |value, wanted| Verdict::new("x", value, "", wanted).is_met();
        assert_eq!(is_met(1.0, Some(Wanted::AtMost(1.0))), Some(true));
        assert_eq!(is_met(1.1, Some(Wanted::AtMost(1.0))), Some(false));
        assert_eq!(is_met(0.9, Some(Wanted::AtLeast(1.0))), Some(false));
        assert_eq!(is_met(0.9, None), None);
        // A target that could not be measured is not met.
        assert_eq!(is_met(f64::NAN, Some(Wanted::AtMost(1.0))), Some(false));
    }
}
