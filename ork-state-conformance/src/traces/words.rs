//! The small alphabets that traces are made from: few enough values that things collide, awkward
//! enough to be worth storing.

use ork_state_api::{Dag, Json, Label, Result, TaskName, TaskSpec, Text, WorkflowName};

/// An item of a list, selected by a number of any size.
pub(super) fn one_of<T: Copy>(list: &[T], number: u8) -> T {
    list[usize::from(number) % list.len()]
}

pub(super) fn workflow_name(number: u8) -> Result<WorkflowName> {
    one_of(&["a", "A", "é", "E\u{301}", "b%_\\", "ab", "z z", "🦀"], number).parse()
}

/// What somebody types into a search.
pub(super) fn search(number: u8) -> Result<Text> {
    one_of(&["", "a", "A", "É", "%", "_", "\\", "b%", "*", " ", "\u{301}"], number).parse()
}

pub(super) fn text(number: u8) -> Text {
    match number % 8 {
        0 => Text::lossy("plain"),
        1 => Text::lossy(""),
        2 => Text::lossy("naïve \u{202e}🦀\u{feff}"),
        3 => Text::lossy("line\r\nbreak\ttab \u{1}"),
        4 => Text::lossy("'; DROP TABLE tasks; -- \"\\ $1 ?1"),
        5 => Text::lossy(&"long ".repeat(2000)),
        6 => Text::lossy("\u{2028}\u{2029}\u{85}"),
        _ => Text::lossy(" "),
    }
}

pub(super) fn label(number: u8) -> Result<Label> {
    one_of(&["one", "two", "Two", "drei ß", "'quoted\"", "{}"], number).parse()
}

pub(super) fn json(number: u8) -> Result<Json> {
    if number % 17 == 16 {
        return Json::parse(format!("{}1{}", "[".repeat(100), "]".repeat(100)));
    }
    Json::parse(one_of(
        &[
            "null",
            "0",
            "-0.0",
            "1e2",
            "9007199254740993",
            "12345678901234567890",
            "1.10",
            "\"\"",
            "\"a\\u00e9\\\"\\\\ 🦀\"",
            "[]",
            "{ \"b\" : 1,\n \"a\":\t[null, true] }",
            "{\"\":{}}",
            "\"null\"",
            "[1,2,{\"x\":[]}]",
            "\"\\u0000 \\ud800\"",
            "false",
        ],
        number,
    ))
}

/// The names of tasks.
const TASKS: [&str; 6] = ["a", "b", "c", "d", "é", "last"];

pub(super) fn task_name(number: u8) -> Result<TaskName> {
    one_of(&TASKS, number).parse()
}

/// Shapes of DAGs: each task with its dependencies, retries and timeout in seconds.
type Shape = &'static [(&'static str, &'static [&'static str], u32, Option<u32>)];

const SHAPES: [Shape; 9] = [
    &[("a", &[], 0, None)],
    &[("a", &[], 1, None), ("b", &["a"], 0, None)],
    &[("a", &[], 0, Some(60)), ("b", &["a"], 1, None), ("c", &["a"], 0, None), ("d", &["b", "c"], 0, None)],
    &[("a", &[], 2, Some(1)), ("b", &[], 0, None), ("c", &["b"], 0, Some(3600))],
    &[("d", &["c"], 0, None), ("c", &["b"], 0, None), ("b", &["a"], 0, None), ("a", &[], 0, None)],
    &[],
    &[("a", &[], 0, None), ("b", &[], 0, None), ("c", &[], 0, None), ("last", &["a", "b", "c"], 0, None)],
    &[("é", &[], 3, Some(60)), ("a", &["é"], 0, None), ("b", &["a", "é"], 0, None)],
    &[("a", &[], 0, None), ("b", &["a"], 0, None), ("c", &["a"], 0, None), ("d", &["a"], 0, None)],
];

pub(super) fn dag(number: u8) -> Result<Dag> {
    let specs: Result<Vec<TaskSpec>> = one_of(&SHAPES, number)
        .iter()
        .map(|(name, dependencies, retries, timeout)| {
            let dependencies: Result<Vec<TaskName>> = dependencies.iter().map(|name| name.parse()).collect();
            let mut spec =
                TaskSpec::new(name.parse()?, label(number)?).after(dependencies?).with_max_retries(*retries);
            if let Some(seconds) = timeout {
                spec = spec.with_timeout_seconds(*seconds);
            }
            Ok(if number % 2 == 1 { spec.with_params(json(number)?) } else { spec })
        })
        .collect();
    Dag::new(specs?)
}

/// Pieces of logs, never empty.
pub(super) fn chunk(number: u8) -> Vec<u8> {
    match number % 5 {
        0 => b"line\n".to_vec(),
        1 => b"\0\xff\xfe half a \xc3".to_vec(),
        2 => vec![b'x'; 10_000],
        3 => "é".repeat(300).into_bytes(),
        _ => b"\r".to_vec(),
    }
}
