//! G8.

use ork_state_api::{Dag, Error, ErrorKind, RunStatus, StartRun};

use super::super::{Answer, Call, Model};
use super::Fault;
use super::shapes::{after, before};
use crate::Damage;
use crate::Rule::G8;

pub(super) const FAULTS: &[Fault] = &[
    after! { G8, "unknown-run-status-is-pending", "has a run's status that it does not know for pending",
    |turn, Call::GetRun { id }, Answer::GetRun(run @ Err(_))| {
        *run = turn.model.get_run(*id);
        if let Ok(run) = run {
            run.status = RunStatus::Pending;
        }
    }},
    Fault::new(G8, "unreadable-runs-left-out", "leaves runs that it cannot read out of the list", |turn| {
        let Call::ListRuns { list } = &turn.call else { return turn.honest() };
        let mut page = turn.model.list_runs(list);
        page.items.retain(|run| turn.model.corrupt_run(run.id).is_ok());
        Answer::ListRuns(Ok(page))
    }),
    after! { G8, "unknown-task-status-is-pending", "has a task's status that it does not know for pending",
        |turn, Call::GetTask { id }, Answer::GetTask(task @ Err(_))| *task = turn.model.get_task(*id)
    },
    Fault::new(G8, "unreadable-tasks-left-out", "leaves tasks that it cannot read out of the list", |turn| {
        let Call::ListTasks { list } = &turn.call else { return turn.honest() };
        let mut page = turn.model.list_tasks(list);
        if let Ok(page) = &mut page {
            page.items.retain(|task| turn.model.corrupt_task(task.id).is_ok());
        }
        Answer::ListTasks(page)
    }),
    Fault::new(
        G8,
        "unreadable-dependencies-are-none",
        "has a task whose dependencies it cannot read depend on nothing",
        |turn| {
            let Call::ClaimTasks { .. } = turn.call else { return turn.honest() };
            let damaged = turn.model.damaged.clone();
            for damage in &damaged {
                if let Damage::DependsOn(task) = *damage {
                    turn.model.edit_task(task, |row| row.dependencies.clear());
                    turn.model.damaged.retain(|it| it != damage);
                }
            }
            let answer = turn.honest();
            turn.model.damaged = damaged;
            answer
        },
    ),
    after! { G8, "one-row-stops-claims", "claims nothing while there is a task that it cannot read",
    |turn, Answer::ClaimTasks(claimed)| {
        if let Some(error) = unreadable_task(turn.model) {
            *claimed = Err(error);
        }
    }},
    before! { G8, "one-row-stops-updates",
        "applies nothing of a batch while there is a task that it cannot read",
    |turn, Call::UpdateTasks { .. }| {
        if let Some(error) = unreadable_task(turn.model) {
            return Answer::UpdateTasks(Err(error));
        }
    }},
    before! { G8, "one-row-stops-expiry",
        "has no lease lapse while there is a task that it cannot read",
    |turn, Call::ExpireLeases { .. }| {
        if let Some(error) = unreadable_task(turn.model) {
            return Answer::ExpireLeases(Err(error));
        }
    }},
    before! { G8, "one-row-stops-everything",
        "does nothing any more once it has seen a run that it cannot read",
    |turn| {
        let unreadable = turn.model.damaged.iter().find_map(|damage| match damage {
            Damage::RunStatus(run) => turn.model.corrupt_run(*run).err(),
            _ => None,
        });
        if let Some(error) = unreadable {
            return turn.call.fails(error);
        }
    }},
    after! { G8, "corrupt-somewhere", "does not say what of a row it cannot read", |turn, answer| {
        if let Some(ErrorKind::Corrupt { table, id, .. }) = answer.error().map(Error::kind) {
            *answer = turn.call.fails(Error::corrupt(table.clone(), id.clone(), "", "cannot be read"));
        }
    }},
    after! { G8, "unreadable-dag-is-empty", "starts a run whose DAG it cannot read without tasks",
    |turn, Call::StartRun { start }, Answer::StartRun(Err(error))| {
        if let ErrorKind::Corrupt { .. } = error.kind()
            && let Ok(dag) = Dag::new([])
        {
            let start = StartRun::with_dag(start.run, dag);
            return turn.instead(Call::StartRun { start });
        }
    }},
];

fn unreadable_task(model: &Model) -> Option<Error> {
    model.places.keys().find_map(|task| model.corrupt_task(*task).err())
}
