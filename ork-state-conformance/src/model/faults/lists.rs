//! G6.

use std::cmp::Reverse;

use ork_state_api::{Limit, Page, RunFilter, RunKey, WorkflowName};

use super::super::{Answer, Call, Turn};
use super::Fault;
use super::shapes::{after, before, next};
use crate::Rule::G6;

pub(super) const FAULTS: &[Fault] = &[
    after! { G6, "order-of-locale", "lists workflows as people would, not by bytes",
    |turn, Answer::ListWorkflows(Ok(page))| {
        page.items.sort_by_key(|workflow| workflow.name.to_lowercase());
    }},
    after! { G6, "oldest-first", "lists the oldest of a page's runs first",
        |turn, Answer::ListRuns(Ok(page))| page.items.reverse()
    },
    after! { G6, "equal-times-by-chance", "lists runs of one moment in any order",
        |turn, Answer::ListRuns(Ok(page))| page.items.sort_by_key(|run| (Reverse(run.created_at), run.id))
    },
    after! { G6, "page-repeats", "shows the last run of a page on the next again",
    |turn, Call::ListRuns { list }, Answer::ListRuns(Ok(page))| {
        if let Some(run) = list.page.after.and_then(|after| turn.model.runs.get(&after.id)) {
            page.items.insert(0, turn.model.show_run(run));
        }
    }},
    after! { G6, "page-skips", "goes on after a page by time alone, past runs of the same moment",
    |turn, Call::ListRuns { list }, Answer::ListRuns(Ok(page))| {
        if let Some(after) = list.page.after {
            page.items.retain(|run| run.created_at < after.created_at);
        }
    }},
    Fault::new(
        G6,
        "page-by-number",
        "counts rows to find a page, so that a row that is inserted before it shows one again",
        |turn| {
            let Call::ListWorkflows { list } = &mut turn.call else { return turn.honest() };
            let (limit, after) = (list.page.limit, list.page.after.take());
            let skipped = after.and_then(|after| turn.model.pages.get(&after).copied()).unwrap_or(0);
            list.page.limit = Limit::MAX;
            let mut answer = turn.honest();
            if let Answer::ListWorkflows(Ok(page)) = &mut answer {
                let rows = page.items.drain(..).skip(skipped).take(limit.get() + 1).collect();
                *page = Page::from_rows(rows, limit, |row| row.name.clone());
                turn.model.pages.extend(page.next.clone().map(|next| (next, skipped + limit.get())));
            }
            answer
        },
    ),
    after! { G6, "last-page-has-next", "says that there is more after the last page", |turn, answer| {
        match answer {
            Answer::ListRuns(Ok(page)) => page.next = page.items.last().map(RunKey::of),
            Answer::ListWorkflows(Ok(page)) => page.next = page.items.last().map(|last| last.name.clone()),
            Answer::ListTasks(Ok(page)) => page.next = page.items.last().map(|last| last.index),
            _ => {}
        }
    }},
    before! { G6, "one-too-many", "gives a row more than was asked for", |turn, Call::ListRuns { list }| {
        list.page.limit = Limit::new(list.page.limit.get() + 1).unwrap_or(list.page.limit);
    }},
    after! { G6, "tasks-by-name", "lists tasks by name",
        |turn, Answer::ListTasks(Ok(page))| page.items.sort_by(|a, b| a.name.cmp(&b.name))
    },
    Fault::new(G6, "ascii-case", "searches without regard to case in ASCII only", |turn| {
        searched(turn, |name, wanted| name.to_ascii_lowercase().contains(&wanted.to_ascii_lowercase()))
    }),
    Fault::new(G6, "search-by-pattern", "has % in a search stand for anything", |turn| {
        searched(turn, |name, wanted| {
            let (name, wanted) = (name.to_lowercase(), wanted.to_lowercase());
            wanted.split('%').all(|part| name.contains(part))
        })
    }),
    before! { G6, "one-status", "filters runs by the first of several statuses",
    |turn, Call::ListRuns { list }| {
        if let Some(statuses) = &mut list.filter.statuses {
            let first = statuses.first().copied();
            statuses.retain(|status| Some(*status) == first);
        }
    }},
    before! { G6, "range-with-its-end", "counts the end of a range of time in",
        |turn, Call::ListRuns { list }| list.filter.created_before = list.filter.created_before.map(next)
    },
    before! { G6, "count-of-all", "counts all runs whatever is asked for",
        |turn, Call::CountRuns { filter }| *filter = RunFilter::all()
    },
    before! { G6, "runs-of-all", "lists the runs of all workflows when asked for one's",
        |turn, Call::ListRuns { list }| list.filter.workflow = None
    },
    before! { G6, "statuses-of-tasks-ignored", "lists tasks of any status",
        |turn, Call::ListTasks { list }| list.statuses = None
    },
];

/// Lists workflows with another way to match names.
fn searched(turn: &mut Turn<'_>, matches: fn(&str, &str) -> bool) -> Answer {
    let Call::ListWorkflows { list } = &mut turn.call else { return turn.honest() };
    let Some(wanted) = list.filter.name_contains.take() else { return turn.honest() };
    let mut rows: Vec<_> =
        turn.model.workflows.values().filter(|it| matches(&it.name, &wanted)).cloned().collect();
    rows.retain(|row| list.page.after.as_ref().is_none_or(|after: &WorkflowName| row.name > *after));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Answer::ListWorkflows(Ok(Page::from_rows(rows, list.page.limit, |row| row.name.clone())))
}
