//! The results as one page that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::figures::{Facts, Outcome, Results, Series, Spread, Verdict, number};

const STYLE: &str = include_str!("bench.css");
/// The size of a plot, and the room for its scales.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// So many lines are told apart.
const COLOURS: usize = 8;

impl Results {
    pub(super) fn html(&self) -> String {
        let mut scenarios: Vec<(&str, Vec<&Outcome>)> = Vec::new();
        for outcome in &self.outcomes {
            match scenarios.iter_mut().find(|(name, _)| *name == outcome.scenario) {
                Some((_, outcomes)) => outcomes.push(outcome),
                None => scenarios.push((&outcome.scenario, vec![outcome])),
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
                    main {
                        (self.verdicts())
                        @for (name, outcomes) in &scenarios { (scenario(name, outcomes)) }
                    }
                }
            }
        };
        page.into_string()
    }

    fn verdicts(&self) -> Markup {
        html! {
            section {
                h2 { "Figures and targets" }
                div.scroll {
                    table {
                        thead { tr { th { "#" } th { "Backend" } th { "Figure" } th.number { "Measured" } th.number { "Target" } th { "" } } }
                        tbody {
                            @for outcome in &self.outcomes {
                                @for verdict in &outcome.verdicts {
                                    @let met = verdict.is_met();
                                    tr {
                                        td { a href={ "#" (outcome.scenario) } { (outcome.target) } }
                                        td { (outcome.backend) }
                                        td { (verdict.figure) }
                                        td.number { (number(verdict.value)) " " (verdict.unit) }
                                        td.number { (verdict.wanted_text()) }
                                        td class=(match met { None => "", Some(true) => "met", Some(false) => "missed" }) { (Verdict::mark(met)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn header(facts: &Facts) -> Markup {
    let Facts { version, commit, build, os, cores, fdatasync, quick, origins, .. } = facts;
    html! {
        header {
            h1 { "ork-state benchmarks" }
            @if *quick { p.warning { "Sizes were cut down to see that everything works. These figures are not to be quoted." } }
            p.soft {
                "Version " (version) " (" (commit) "), " (build) " build, " (os) ", " (cores) " cores. An append of 4 KiB with fdatasync takes "
                (number(fdatasync.median)) " ms here: no commit is faster."
                @for (backend, origin) in origins { " " (backend) ": " (origin) "." }
            }
            p.soft { "A floor is the same row changes by hand-written SQL, or the same bytes in a file, without a contract, in the same run. Bars and points are medians; the thin lines span the samples." }
        }
    }
}

fn scenario(name: &str, outcomes: &[&Outcome]) -> Markup {
    let title = outcomes.first().map_or("", |outcome| outcome.title);
    let mut lines: Vec<(String, &Series)> = Vec::new();
    for outcome in outcomes {
        for series in outcome.series.iter().filter(|series| !series.points.is_empty()) {
            lines.push((format!("{}: {}", outcome.backend, series.name), series));
        }
    }
    let mut units: Vec<&str> = lines.iter().map(|(_, series)| series.unit).collect();
    units.dedup();
    units.sort_unstable();
    units.dedup();
    html! {
        section id=(name) {
            h2 { (outcomes.first().map_or("", |outcome| outcome.target)) " " (name) }
            p { (title) "." }
            p.soft {
                @for outcome in outcomes {
                    (outcome.backend)
                    @for (name, value) in &outcome.parameters { ", " (name) " " (value) }
                    ", " (number(outcome.seconds)) " s. "
                }
            }
            div.plots {
                @for unit in units {
                    @let of_unit = lines.iter().filter(|(_, series)| series.unit == unit);
                    @let (curves, bars): (Vec<_>, Vec<_>) = of_unit.partition(|(_, series)| series.points.len() > 1);
                    @if !curves.is_empty() { (plot(unit, &curves)) }
                    @if !bars.is_empty() { (bar_chart(unit, &bars)) }
                }
            }
        }
    }
}

/// From a value to a place between two places.
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

fn plot(unit: &str, lines: &[&(String, &Series)]) -> Markup {
    let points = || lines.iter().flat_map(|(_, series)| &series.points);
    let over = lines.first().map_or("", |(_, series)| series.over);
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
                @for (line, (_, series)) in lines.iter().enumerate() {
                    g class={ "c" (line % COLOURS) } {
                        @for point in &series.points {
                            @let Spread { median, low, high, .. } = point.spread;
                            line x1=(x.place(point.at)) x2=(x.place(point.at)) y1=(y.place(low)) y2=(y.place(high)) {}
                            circle cx=(x.place(point.at)) cy=(y.place(median)) r="3" { title { (number(point.at)) " " (over) ": " (number(median)) " " (unit) } }
                        }
                        polyline points=(path(series)) {}
                    }
                }
            }
            ul.legend { @for (line, (name, _)) in lines.iter().enumerate() { li class={ "c" (line % COLOURS) } { (name) } } }
        }
    }
}

fn bar_chart(unit: &str, lines: &[&(String, &Series)]) -> Markup {
    let spreads = || lines.iter().filter_map(|(_, series)| series.points.first()).map(|point| point.spread);
    let most = spreads().map(|spread| spread.high).fold(0.0, f64::max);
    html! {
        figure {
            figcaption { (unit) }
            table.bars {
                @for ((name, series), Spread { median, low, high, .. }) in lines.iter().zip(spreads()) {
                    tr title={ (number(low)) " … " (number(high)) " " (unit) ", " (series.over) } {
                        th { (name) }
                        td { div.bar style={ "width:" (format!("{:.1}", 100.0 * median / most)) "%" } {} }
                        td.number { (number(median)) }
                    }
                }
            }
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
        // Nothing to place is no reason to fail.
        assert!(Scale::new(std::iter::empty(), 0.0, 1.0, true).ticks().len() < 13);
    }
}
