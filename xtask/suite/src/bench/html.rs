//! The results as one self-contained page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::figures::{Facts, Outcome, Results, Series, Spread, Verdict, Wanted, number};

const STYLE: &str = include_str!("bench.css");
/// The size of a plot, and the room for its scales.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// How many lines have different colours.
const COLOURS: usize = 8;

impl Results {
    pub(super) fn html(&self) -> String {
        let mut backends: Vec<(&str, Vec<&Outcome>)> = Vec::new();
        for outcome in &self.outcomes {
            match backends.iter_mut().find(|(name, _)| *name == outcome.backend) {
                Some((_, outcomes)) => outcomes.push(outcome),
                None => backends.push((&outcome.backend, vec![outcome])),
            }
        }
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { "ork-state benchmarks" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    (header(&self.facts))
                    main { @for (name, outcomes) in &backends { (backend(name, outcomes, &self.facts)) } }
                }
            }
        };
        page.into_string()
    }
}

fn header(facts: &Facts) -> Markup {
    let Facts { version, commit, build, os, cores, fdatasync, quick, .. } = facts;
    html! {
        header {
            h1 { "ork-state benchmarks" }
            @if *build != "release" {
                p.alarm { b { (build.to_uppercase()) " BUILD" } " These figures say nothing about speed. A release build is several times faster." }
            }
            @if *quick {
                p.alarm { b { "SMALL SIZES" } " The run only shows that everything works. Do not quote its figures." }
            }
            p.soft {
                "Version " (version) " (" (commit) "), " (build) " build, " (os) ", " (cores) " cores. An append of 4 KiB with fdatasync takes "
                (number(fdatasync.median)) " ms here: no commit is faster."
            }
            p.soft { "A floor is the same work without the contract, in the same run: hand-written SQL, or appends to a file. Bars and points are medians. Thin lines span the samples." }
            ul.key {
                li { span.sample.target {} "target" }
                li { span.sample.floor {} "floor" }
                li { span.sample.range {} "samples" }
            }
        }
    }
}

/// All figures of one backend. Each figure has its own scale.
fn backend(name: &str, outcomes: &[&Outcome], facts: &Facts) -> Markup {
    let verdicts = || outcomes.iter().flat_map(|outcome| &outcome.verdicts).filter_map(Verdict::is_met);
    let (all, met) = (verdicts().count(), verdicts().filter(|met| *met).count());
    let origin = facts.origins.iter().find(|(backend, _)| backend == name).map(|(_, origin)| origin);
    html! {
        section id=(name) {
            h2 { (name) }
            p {
                @if all > 0 { b class=(if met == all { "met" } else { "missed" }) { (met) " of " (all) " targets met" } }
                @if let Some(origin) = origin { span.soft { " " (origin) } }
            }
            @for outcome in outcomes { (scenario(outcome)) }
        }
    }
}

fn scenario(outcome: &Outcome) -> Markup {
    let lines: Vec<&Series> = outcome.series.iter().filter(|series| !series.points.is_empty()).collect();
    let mut units: Vec<&str> = lines.iter().map(|series| series.unit).collect();
    units.sort_unstable();
    units.dedup();
    html! {
        article id={ (outcome.backend) "-" (outcome.scenario) } {
            h3 { (outcome.target) " " (outcome.scenario) }
            p { (outcome.title) "." }
            div.plots {
                @for unit in units {
                    @let of_unit = lines.iter().copied().filter(|series| series.unit == unit);
                    @let (curves, bars): (Vec<_>, Vec<_>) = of_unit.partition(|series| series.points.len() > 1);
                    @if !curves.is_empty() { (plot(unit, &curves)) }
                    @if !bars.is_empty() { (bar_chart(unit, &bars, outcome)) }
                }
                @if !outcome.verdicts.is_empty() {
                    figure { @for verdict in &outcome.verdicts { (figure(verdict)) } }
                }
            }
            p.soft {
                @for (name, value) in &outcome.parameters { (name) " " (value) ", " }
                (number(outcome.seconds)) " s"
            }
        }
    }
}

/// A figure as a bar, with a mark at its target.
fn figure(verdict: &Verdict) -> Markup {
    let limit = verdict.wanted.map(|wanted| match wanted {
        Wanted::AtMost(limit) | Wanted::AtLeast(limit) => limit,
    });
    let met = verdict.is_met();
    let class = match met {
        None => "",
        Some(true) => "met",
        Some(false) => "missed",
    };
    // A figure relative to the floor has the floor at one.
    let floor = verdict.figure.contains("floor").then_some(1.0);
    let most = [Some(verdict.value), limit, floor].into_iter().flatten().fold(0.0, f64::max) * HEADROOM;
    html! {
        div class={ "row " (class) } {
            span.label { (verdict.figure) }
            span.value {
                b { (number(verdict.value)) " " (verdict.unit) } " "
                @if met.is_some() { "(target " (verdict.wanted_text()) ", " b.mark_word { (Verdict::mark(met)) } ")" }
            }
            @if most > 0.0 {
                div.track {
                    div.fill style=(width(verdict.value / most)) {}
                    @if let Some(floor) = floor { (mark("floor", floor / most)) }
                    @if let Some(limit) = limit { (mark("target", limit / most)) }
                }
                (axis(most, verdict.unit))
            }
        }
    }
}

/// Bars of one unit on one scale. The floor is a mark on them, and so is a target that is a
/// fraction of it.
fn bar_chart(unit: &str, lines: &[&Series], outcome: &Outcome) -> Markup {
    let spread = |series: &Series| series.points.first().map(|point| point.spread);
    let floor = lines.iter().find(|series| series.name == FLOOR).and_then(|series| spread(series));
    let floor = floor.map(|spread| spread.median);
    let share = outcome.verdicts.iter().filter(|verdict| verdict.figure.contains("against the floor"));
    let share = share.filter_map(|verdict| Some((verdict, verdict.wanted?))).find_map(|(verdict, wanted)| {
        let Wanted::AtLeast(share) = wanted else { return None };
        Some((verdict.figure.as_str(), share))
    });
    let bars = || lines.iter().filter(|series| series.name != FLOOR);
    let highest = lines.iter().filter_map(|series| spread(series)).map(|spread| spread.high);
    let most = highest.filter(|high| high.is_finite()).fold(0.0, f64::max) * HEADROOM;
    if most <= 0.0 {
        return html! {};
    }
    html! {
        figure {
            @for series in bars() {
                @if let Some(Spread { median, low, high, .. }) = spread(series) {
                    div.row title={ (number(low)) " … " (number(high)) " " (unit) ", " (series.over) } {
                        span.label { (series.name) }
                        span.value { b { (number(median)) " " (unit) } }
                        div.track {
                            div.fill style=(width(median / most)) {}
                            div.range style={ "left:" (percent(low / most)) ";" (width((high - low) / most)) } {}
                            @if let Some(floor) = floor {
                                (mark("floor", floor / most))
                                // The target applies to this figure only.
                                @if let Some((_, share)) = share.filter(|(figure, _)| figure.starts_with(&series.name)) {
                                    (mark("target", floor * share / most))
                                }
                            }
                        }
                    }
                }
            }
            (axis(most, unit))
            @if let Some(floor) = floor { p.soft { "floor: " (number(floor)) " " (unit) } }
        }
    }
}

/// A scale ends a little beyond the longest bar.
const HEADROOM: f64 = 1.1;
/// The name of a series that is a floor.
const FLOOR: &str = "floor";

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share.clamp(0.0, 1.0))
}

fn width(share: f64) -> String {
    format!("width:{}", percent(share))
}

fn mark(kind: &str, share: f64) -> Markup {
    html! { div class={ "mark " (kind) } title=(kind) style={ "left:" (percent(share)) } {} }
}

fn axis(most: f64, unit: &str) -> Markup {
    html! { div.axis aria-hidden="true" { span { "0" } span { (number(most)) " " (unit) } } }
}

/// Maps a value to a position between two positions.
struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64, from_zero: bool) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let is_log = low > 0.0 && high / low > 20.0;
        let low = if from_zero && !is_log { 0.0 } else { low };
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high, is_log, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let exponents = (self.low.log10().ceil() as i32)..=(self.high.log10().floor() as i32);
            return exponents.map(|exponent| 10_f64.powi(exponent)).collect();
        }
        let rough = (self.high - self.low) / 4.0;
        let size = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * size).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.low / step).ceil();
        (0..12).map(|tick| (first + f64::from(tick)) * step).take_while(|tick| *tick <= self.high).collect()
    }
}

fn plot(unit: &str, lines: &[&Series]) -> Markup {
    let points = || lines.iter().flat_map(|series| &series.points);
    let over = lines.first().map_or("", |series| series.over);
    let x = Scale::new(points().map(|point| point.at), LEFT, WIDTH - RIGHT, false);
    let y = Scale::new(
        points().flat_map(|point| [point.spread.median, point.spread.low, point.spread.high]),
        HEIGHT - BOTTOM,
        TOP,
        true,
    );
    let path = |series: &Series| {
        let place = |point: &super::figures::Point| {
            format!("{:.1},{:.1}", x.place(point.at), y.place(point.spread.median))
        };
        series.points.iter().map(place).collect::<Vec<_>>().join(" ")
    };
    html! {
        figure {
            figcaption { (unit) " over " (over) }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label={ (unit) " over " (over) } {
                @for tick in y.ticks() {
                    line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y.place(tick)) y2=(y.place(tick)) {}
                    text.tick x=(LEFT - 6.0) y=(y.place(tick) + 4.0) text-anchor="end" { (number(tick)) }
                }
                @for tick in x.ticks() {
                    line.grid x1=(x.place(tick)) x2=(x.place(tick)) y1=(TOP) y2=(HEIGHT - BOTTOM) {}
                    text.tick x=(x.place(tick)) y=(HEIGHT - BOTTOM + 16.0) text-anchor="middle" { (number(tick)) }
                }
                text.tick x=((LEFT + WIDTH - RIGHT) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { (over) }
                @for (line, series) in lines.iter().enumerate() {
                    g class={ "c" (line % COLOURS) @if series.name == FLOOR { " dashed" } } {
                        @for point in &series.points {
                            @let Spread { median, low, high, .. } = point.spread;
                            line x1=(x.place(point.at)) x2=(x.place(point.at)) y1=(y.place(low)) y2=(y.place(high)) {}
                            circle cx=(x.place(point.at)) cy=(y.place(median)) r="3" { title { (number(point.at)) " " (over) ": " (number(median)) " " (unit) } }
                        }
                        polyline points=(path(series)) {}
                    }
                }
            }
            ul.legend { @for (line, series) in lines.iter().enumerate() { li class={ "c" (line % COLOURS) } { (series.name) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_place_what_is_between_their_ends() {
        let linear = Scale::new([2.0, 10.0].into_iter(), 0.0, 100.0, true);
        assert_eq!((linear.place(0.0), linear.place(5.0), linear.place(10.0)), (0.0, 50.0, 100.0));
        let log = Scale::new([1.0, 10_000.0].into_iter(), 0.0, 100.0, true);
        assert!((log.place(100.0) - 50.0).abs() < 1e-9);
        assert_eq!(log.ticks(), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!(linear.ticks(), [0.0, 5.0, 10.0]);
        // A scale without values must not fail.
        assert!(Scale::new(std::iter::empty(), 0.0, 1.0, true).ticks().len() < 13);
    }
}
