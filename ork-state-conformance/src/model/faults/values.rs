//! G3 to G5.

use ork_state_api::{Clock, CreatedRun, Json, Label, SystemClock, Text, Timestamp};

use super::super::{Answer, Call, Turn};
use super::Fault;
use super::shapes::{after, before, whole};
use crate::Rule::{G3, G4, G5};

pub(super) const FAULTS: &[Fault] = &[
    // G3
    before! { G3, "milliseconds", "keeps times to the millisecond",
        |turn| turn.now = whole(turn.now, 1_000)
    },
    Fault::new(G3, "random-ids", "makes ids of version 4, in no order", |turn| {
        let Call::CreateRun { .. } = turn.call else { return turn.honest() };
        let mut choice = turn.model.clone().answer(turn.now, turn.call.clone(), None);
        if let Answer::CreateRun(Ok(CreatedRun::New(run))) = &mut choice {
            let mut text = run.id.to_string();
            text.replace_range(14..15, "4");
            run.id = text.parse().unwrap_or(run.id);
        }
        turn.model.answer(turn.now, turn.call.clone(), Some(&choice))
    }),
    before! { G3, "thirty-two-bits", "keeps times up to 2038 only", |turn| {
        let end = Timestamp::from_micros(i64::from(i32::MAX) * 1_000_000).unwrap_or(turn.now);
        turn.now = turn.now.min(end);
    }},
    // G4
    before! { G4, "callers-clock", "takes the time of the machine instead of the injected one",
        |turn| turn.now = SystemClock::default().now()
    },
    before! { G4, "time-stands", "never gets beyond the first of January 2026",
        |turn| turn.now = turn.now.min(Timestamp::from_micros(1_767_225_600_000_000).unwrap_or(turn.now))
    },
    // G5
    after! { G5, "json-rewritten", "keeps JSON as values, which rewrites numbers and space",
        |turn, answer| each_json(answer, |json| Json::from_value(&json.to::<serde_json::Value>().ok()?).ok())
    },
    after! { G5, "null-is-none", "has the JSON null for no value",
        |turn, answer| each_json(answer, |json| Some(json).filter(|json| json.as_str() != "null"))
    },
    after! { G5, "large-values-cut", "keeps values up to a megabyte",
        |turn, answer| each_json(answer, |json| Some(json).filter(|json| json.as_str().len() <= 1 << 20))
    },
    before! { G5, "text-trimmed", "drops space around text",
        |turn| describe(turn, |text| Some(text.trim().to_owned()))
    },
    before! { G5, "empty-is-none", "has the empty text for no text",
        |turn| describe(turn, |text| Some(text.to_owned()).filter(|text| !text.is_empty()))
    },
    before! { G5, "quotes-doubled", "keeps text with its quotes doubled",
        |turn| describe(turn, |text| Some(text.replace('\'', "''")))
    },
    before! { G5, "long-text-cut", "keeps the first 64 KiB of a text",
        |turn| describe(turn, |text| Some(text.chars().take(1 << 14).collect()))
    },
    before! { G5, "labels-cut", "keeps the first 63 bytes of a label", |turn, Call::CreateRun { new }| {
        let cut: String = new.triggered_by.as_str().chars().take(63).collect();
        new.triggered_by = Label::lossy(&cut);
    }},
];

/// Changes the JSON of all tasks in an answer.
fn each_json(answer: &mut Answer, change: fn(Json) -> Option<Json>) {
    let change = |json: &mut Option<Json>| *json = json.take().and_then(change);
    match answer {
        Answer::GetTask(Ok(detail)) => {
            change(&mut detail.output);
            change(&mut detail.params);
        }
        Answer::TaskOutputs(Ok(outputs)) => outputs.values_mut().for_each(change),
        _ => {}
    }
}

/// Gives a new workflow a description that differs slightly from the given one.
fn describe(turn: &mut Turn<'_>, change: fn(&str) -> Option<String>) {
    if let Call::CreateWorkflow { new } = &mut turn.call {
        let given = new.description.take();
        new.description = given.and_then(|text| change(text.as_str())).map(|text| Text::lossy(&text));
    }
}
