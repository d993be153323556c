//! Draws the picture: the DAG with the state of each task, the schedulers, the latest events, and
//! at the end who ran what.

use console::{Style, style};
use ork_state_api::{Task, TaskStatus};

use super::SCHEDULERS;
use super::story::{Event, Story, Tone};
use super::workflow::REGIONS;

/// The smallest width of the picture.
pub(crate) const COLUMNS: usize = 79;
pub(crate) const ROWS: usize = 20;
/// The lines above the events.
const HEAD: usize = 12;

pub(crate) fn title() -> String {
    style("Two schedulers work on one workflow. One of them will be killed.").bold().to_string()
}

/// The whole picture, in this many lines.
pub(crate) fn frame(story: &Story, lines: usize) -> Vec<String> {
    let mut frame = vec![title(), String::new()];
    frame.extend(dag(story));
    let legend = "·  waits   ▶1 runs on scheduler-1   ✓1 done by it   ✗1 it is dead   ↻  again";
    frame.extend([style(legend).dim().to_string(), String::new()]);
    frame.extend(SCHEDULERS.iter().enumerate().map(|(number, name)| scheduler(story, number, name)));
    frame.push(String::new());
    let events = story.events.iter().rev().take(lines.saturating_sub(HEAD)).rev();
    frame.extend(events.map(event));
    frame.resize(lines, String::new());
    frame
}

/// ```text
/// validate ┬ split-north ─ sum-north ┬ join ─ report ┬ archive
///          ├ ...                     ┤               └ publish
/// rates ─────────────────────────────┘
/// ```
fn dag(story: &Story) -> Vec<String> {
    let node = |name: &str| node(story, name);
    let indent = |width: usize| " ".repeat(width);
    let (last, mut lines) = (REGIONS.len() - 1, Vec::new());
    for (number, region) in REGIONS.iter().enumerate() {
        let (from, to) = match number {
            0 => ('┬', '┬'),
            _ if number == last => ('└', '┤'),
            _ => ('├', '┤'),
        };
        let left = if number == 0 { node("validate") } else { indent(11) };
        // As wide as the longest name.
        let pad = " ".repeat(5 - region.len());
        let (split, sum) = (node(&format!("split-{region}")), node(&format!("sum-{region}")));
        let right = match number {
            0 => format!(" {} ─ {} ┬ {}", node("join"), node("report"), node("archive")),
            1 => format!("{}└ {}", indent(21), node("publish")),
            _ => String::new(),
        };
        lines.push(format!("{left} {from} {split}{pad} ─ {sum}{pad} {to}{right}"));
    }
    lines.push(format!("{} {}┘", node("rates"), "─".repeat(35)));
    lines
}

/// A task's mark and name: three columns and the name.
fn node(story: &Story, name: &str) -> String {
    let Some(task) = story.task(name) else { return format!("·  {name}") };
    let runner = story.runner(task);
    let number = SCHEDULERS.iter().position(|name| Some(*name) == runner);
    let digit = number.map_or_else(|| " ".to_owned(), |number| (number + 1).to_string());
    let (mark, look) = match task.status {
        TaskStatus::Success => ("✓", Style::new().green()),
        TaskStatus::Failed | TaskStatus::Cancelled => ("✗", Style::new().red().bold()),
        TaskStatus::Pending if task.attempts > 0 => return style(format!("↻  {name}")).yellow().to_string(),
        TaskStatus::Pending => return style(format!("·  {name}")).dim().to_string(),
        TaskStatus::Dispatched | TaskStatus::Running if is_orphan(story, task) => {
            ("✗", Style::new().red().bold())
        }
        TaskStatus::Dispatched | TaskStatus::Running => ("▶", of_scheduler(number).bold()),
    };
    look.apply_to(format!("{mark}{digit} {name}")).to_string()
}

/// Whether the scheduler that holds the task is dead.
fn is_orphan(story: &Story, task: &Task) -> bool {
    task.lease.as_ref().is_some_and(|lease| Some(lease.owner.as_str()) == story.killed)
}

fn of_scheduler(number: Option<usize>) -> Style {
    match number {
        Some(0) => Style::new().cyan(),
        Some(_) => Style::new().magenta(),
        None => Style::new(),
    }
}

fn scheduler(story: &Story, number: usize, name: &str) -> String {
    let held = match story.held_by(name).join(", ") {
        none if none.is_empty() => "nothing".to_owned(),
        held => held,
    };
    if story.killed == Some(name) {
        let held = if held == "nothing" {
            "what it held is back".to_owned()
        } else {
            format!("its lease on {held} runs out")
        };
        return format!("{}  {held}", style(format!("{name}  KILLED")).red().bold());
    }
    format!("{}  runs {held}", of_scheduler(Some(number)).apply_to(name))
}

pub(crate) fn event(event: &Event) -> String {
    let look = match event.tone {
        Tone::Plain => Style::new(),
        Tone::Log => Style::new().dim(),
        Tone::Retry => Style::new().yellow(),
        Tone::Kill => Style::new().red().bold(),
        Tone::TakeOver => Style::new().green().bold(),
    };
    let at = style(format!("{:5.2} s", event.at.as_secs_f64())).dim();
    format!("{at}  {}", look.apply_to(&event.text))
}

/// Who ran each attempt of each task, and how it ended.
pub(crate) fn attempts(story: &Story) -> String {
    let columns = story.tasks.iter().map(|task| task.attempts).max().unwrap_or(1).max(1);
    let mut header = format!("{:<12}", "task");
    for number in 1..=columns {
        header += &format!("  {:<30}", format!("attempt {number}"));
    }
    let mut table = style(header.trim_end()).bold().to_string();
    for task in &story.tasks {
        table += &format!("\n{:<12}", task.name.as_str());
        for number in 1..=task.attempts {
            table += "  ";
            let cell = match story.attempts.get(&(task.index, number)) {
                Some(attempt) => {
                    let (what, look) = match &attempt.failure {
                        Some(failure) => (failure.as_str(), Style::new().yellow()),
                        None if number < task.attempts => ("killed", Style::new().red().bold()),
                        None if task.status == TaskStatus::Success => ("done", Style::new().green()),
                        None => (task.status.as_str(), Style::new().red()),
                    };
                    console::pad_str(
                        &format!("{}: {}", attempt.by, look.apply_to(what)),
                        30,
                        console::Alignment::Left,
                        None,
                    )
                    .into_owned()
                }
                None => format!("{:<30}", "nobody knows"),
            };
            table += &cell;
        }
        table.truncate(table.trim_end().len());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_fits_a_small_terminal() {
        let mut story = Story::begin();
        story.say(Tone::Plain, "something happened");
        let frame = frame(&story, ROWS - 1);
        assert_eq!(frame.len(), ROWS - 1);
        assert!(frame.iter().any(|line| line.ends_with("something happened")));
        for line in frame {
            assert!(console::measure_text_width(&line) <= COLUMNS, "{line}");
        }
    }
}
