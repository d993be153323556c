use std::collections::BTreeSet;
use std::time::Duration;

use ork_state_api::ErrorKind::NotFound;
use ork_state_api::{
    Entity, Limit, ListRuns, ListTasks, ListWorkflows, NewRun, NewWorkflow, PageRequest, Run, RunFilter,
    RunId, RunKey, WorkflowFilter, WorkflowId, WorkflowName,
};

use super::assert_fails;
use crate::case::case;
use crate::ctx::with;
use crate::{Ctx, dag, wide_dag};

async fn name_workflows(t: &Ctx, names: &[&str]) -> ork_state_api::Result<()> {
    for name in names {
        t.db().create_workflow(NewWorkflow::new(name.parse()?, dag("a")?)).await?;
    }
    Ok(())
}

/// All names, in pages of this size.
async fn names(t: &Ctx, limit: usize) -> ork_state_api::Result<Vec<String>> {
    let (mut all, mut page) = (Vec::new(), PageRequest::first(Limit::new(limit)?));
    loop {
        let found = t.db().list_workflows(page.into()).await?;
        assert!(found.items.len() <= limit);
        all.extend(found.items.into_iter().map(|workflow| String::from(workflow.name)));
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(limit)?),
            None => return Ok(all),
        }
    }
}

async fn runs(t: &Ctx, workflow: Option<WorkflowId>, limit: usize) -> ork_state_api::Result<Vec<Run>> {
    let (mut all, mut page) = (Vec::new(), PageRequest::first(Limit::new(limit)?));
    loop {
        let found = t
            .db()
            .list_runs(ListRuns::new(with(RunFilter::all(), |filter| filter.workflow = workflow), page))
            .await?;
        assert!(found.items.len() <= limit);
        all.extend(found.items);
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(limit)?),
            None => return Ok(all),
        }
    }
}

case! { G6, g6_workflows_are_listed_in_byte_order(t) {
    let awkward = ["b", "B", "a", "A", "é", "e", "z", "Z", "_", "a b", "a-b", "ab", "10", "9", "Ä", "ß", "ss", "\u{1F600}", "\u{FFFD}"];
    name_workflows(&t, &awkward).await?;
    let mut expected = awkward.map(str::to_owned).to_vec();
    expected.sort_unstable();
    assert_eq!(names(&t, 100).await?, expected);
    Ok(())
}}

case! { G6, g6_pages_of_any_size_give_the_same_list(t) {
    name_workflows(&t, &["e", "D", "c", "B", "a", "é"]).await?;
    let all = names(&t, 100).await?;
    for limit in 1..=7 {
        assert_eq!(names(&t, limit).await?, all, "pages of {limit}");
    }
    Ok(())
}}

case! { G6, g6_a_full_last_page_has_no_next(t) {
    name_workflows(&t, &["a", "b"]).await?;
    let page = t.db().list_workflows(PageRequest::first(Limit::new(2)?).into()).await?;
    assert_eq!((page.items.len(), page.next), (2, None));
    Ok(())
}}

case! { G6, g6_an_empty_list_is_an_empty_page(t) {
    assert_eq!(t.db().list_workflows(PageRequest::default().into()).await?.items, []);
    let page = t.db().list_runs(ListRuns::default()).await?;
    assert_eq!((page.items, page.next), (vec![], None));
    Ok(())
}}

case! { G6, g6_inserts_and_deletes_between_pages_skip_and_repeat_nothing(t) {
    name_workflows(&t, &["b", "d", "f", "h"]).await?;
    let first = t.db().list_workflows(PageRequest::first(Limit::new(2)?).into()).await?;
    name_workflows(&t, &["a", "c", "e", "i"]).await?;
    let gone = t.db().find_workflow(&WorkflowName::new("d")?).await?;
    t.db().delete_workflow(gone.id).await?;
    let key = first.next.ok_or("there is a next page")?;
    let second = t.db().list_workflows(PageRequest::after(key, Limit::default()).into()).await?;
    let seen: Vec<_> = second.items.iter().map(|workflow| workflow.name.as_str()).collect();
    assert_eq!(seen, ["e", "f", "h", "i"]);
    Ok(())
}}

case! { G6, g6_a_page_may_start_after_a_name_that_is_not_there(t) {
    name_workflows(&t, &["a", "c"]).await?;
    let page = t.db().list_workflows(PageRequest::after(WorkflowName::new("b")?, Limit::ONE).into()).await?;
    assert_eq!(page.items[0].name.as_str(), "c");
    Ok(())
}}

case! { G6, g6_runs_are_listed_newest_first(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(t.db().create_run(NewRun::new(workflow)).await?.into_run());
        t.advance(Duration::from_micros(1));
    }
    made.reverse();
    assert_eq!(runs(&t, None, 100).await?, made);
    assert_eq!(runs(&t, Some(workflow), 2).await?, made);
    Ok(())
}}

case! { G6, g6_runs_of_one_microsecond_have_one_order(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    for _ in 0..30 {
        t.db().create_run(NewRun::new(workflow)).await?;
    }
    let all = runs(&t, None, 100).await?;
    assert!(all.is_sorted_by_key(RunKey::of));
    for limit in [1, 7, 29, 30] {
        assert_eq!(runs(&t, None, limit).await?, all, "pages of {limit}");
    }
    Ok(())
}}

case! { G6, g6_runs_of_one_workflow_are_its_own(t) {
    let (one, two) = (t.start("a").await?, t.start("a").await?);
    assert_eq!(runs(&t, Some(one.workflow), 10).await?.iter().map(|run| run.id).collect::<Vec<_>>(), [one.id]);
    assert_eq!(runs(&t, Some(two.workflow), 10).await?.len(), 1);
    assert_eq!(runs(&t, Some(WorkflowId::generate()), 10).await?, []);
    Ok(())
}}

case! { G6, g6_new_runs_do_not_disturb_the_pages_of_older_ones(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    for _ in 0..6 {
        t.db().create_run(NewRun::new(workflow)).await?;
        t.advance(Duration::from_micros(1));
    }
    let all: Vec<RunId> = runs(&t, None, 100).await?.iter().map(|run| run.id).collect();
    let mut seen = Vec::new();
    let mut page = PageRequest::first(Limit::new(2)?);
    loop {
        let found = t.db().list_runs(ListRuns::new(RunFilter::all(), page)).await?;
        seen.extend(found.items.iter().map(|run| run.id));
        t.db().create_run(NewRun::new(workflow)).await?;
        t.advance(Duration::from_micros(1));
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(2)?),
            None => break,
        }
    }
    assert_eq!(seen, all);
    Ok(())
}}

case! { G6, g6_tasks_are_listed_in_the_order_of_the_dag(t) {
    let workflow = t.workflow(wide_dag(250)?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(ork_state_api::StartRun::pinned(run.id)).await?;
    let (mut indexes, mut page) = (Vec::new(), PageRequest::first(Limit::new(99)?));
    loop {
        let found = t.db().list_tasks(ListTasks::of(run.id, page)).await?;
        indexes.extend(found.items.iter().map(|task| task.index));
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(99)?),
            None => break,
        }
    }
    assert!(indexes.into_iter().eq(0..250));
    Ok(())
}}

case! { G6, g6_a_page_beyond_the_last_task_is_empty(t) {
    let run = t.start("a b").await?;
    for key in [1, 2, u32::MAX] {
        let page = t.db().list_tasks(ListTasks::of(run.id, PageRequest::after(key, Limit::ONE))).await?;
        assert_eq!((page.items, page.next), (vec![], None));
    }
    Ok(())
}}

case! { G7, g7_tasks_of_an_unknown_run_are_not_found(t) {
    assert_fails!(t.db().list_tasks(ListTasks::of(RunId::generate(), PageRequest::default())).await, NotFound { entity: Entity::Run, .. });
    assert_fails!(t.db().get_task(ork_state_api::TaskId::generate()).await, NotFound { entity: Entity::Task, .. });
    Ok(())
}}

case! { G3, g3_ids_are_of_version_7_and_unique(t) {
    let workflow = t.workflow(wide_dag(100)?).await?;
    let mut ids = vec![workflow.id.as_uuid(), workflow.snapshot.as_uuid()];
    for _ in 0..5 {
        let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
        t.db().start_run(ork_state_api::StartRun::pinned(run.id)).await?;
        ids.push(run.id.as_uuid());
        ids.extend(t.tasks(run.id).await?.iter().map(|task| task.id.as_uuid()));
    }
    assert!(ids.iter().all(|id| id.get_version_num() == 7));
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    Ok(())
}}

case! { G3, g3_times_are_whole_microseconds_and_come_back_equal(t) {
    for step in [1, 999_999, 1_000_001, 86_400_000_003] {
        t.advance(Duration::from_micros(step));
        let run = t.start("a").await?;
        assert_eq!((run.created_at, run.started_at), (t.now(), Some(t.now())));
        assert_eq!(t.db().get_run(run.id).await?, run);
    }
    Ok(())
}}

case! { G3, g3_a_far_future_is_kept(t) {
    t.advance(Duration::from_secs(7000 * 365 * 86_400));
    let run = t.start("a*1").await?;
    t.fail(&t.claim_one().await?, ork_state_api::Delay::MAX.get()).await?;
    let task = t.task(run.id, "a").await?;
    assert_eq!(task.retry_at, Some(t.now().saturating_add(ork_state_api::Delay::MAX.get())));
    assert_eq!(t.db().get_run(run.id).await?.created_at, t.now());
    Ok(())
}}

async fn runs_of(
    t: &Ctx,
    filter: &RunFilter,
) -> Result<Vec<RunId>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut all, mut page) = (Vec::new(), PageRequest::first(Limit::new(2)?));
    loop {
        let found = t.db().list_runs(ListRuns::new(filter.clone(), page)).await?;
        assert!(found.items.iter().all(|run| filter.matches(run)));
        all.extend(found.items.iter().map(|run| run.id));
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(2)?),
            None => break,
        }
    }
    assert_eq!(t.db().count_runs(filter.clone()).await?, all.len() as u64);
    Ok(all)
}

case! { G6, g6_runs_are_filtered_by_all_that_is_asked_for(t) {
    let (one, other) = (t.workflow(dag("a")?).await?.id, t.workflow(dag("a")?).await?.id);
    let (mut made, mut times) = (Vec::new(), Vec::new());
    for index in 0..12 {
        let workflow = if index % 3 == 0 { other } else { one };
        let trigger = if index % 2 == 0 { "manual" } else { "api" };
        let run = t.db().create_run(NewRun::new(workflow).with_trigger(trigger.parse()?)).await?.into_run().id;
        match index % 4 {
            0 => {}
            1 => drop(t.db().cancel_run(run).await?),
            _ => drop(t.db().start_run(ork_state_api::StartRun::pinned(run)).await?),
        }
        made.push(run);
        times.push(t.now());
        t.advance(Duration::from_secs(1));
    }
    use ork_state_api::RunStatus::{Cancelled, Pending, Running, Success};
    let pick = |wanted: fn(usize) -> bool| -> Vec<RunId> {
        made.iter().enumerate().rev().filter(|(index, _)| wanted(*index)).map(|(_, run)| *run).collect()
    };
    assert_eq!(runs_of(&t, &RunFilter::all()).await?, pick(|_| true));
    assert_eq!(runs_of(&t, &RunFilter::of(other)).await?, pick(|i| i % 3 == 0));
    assert_eq!(runs_of(&t, &RunFilter::all().with_statuses([Cancelled])).await?, pick(|i| i % 4 == 1));
    assert_eq!(runs_of(&t, &RunFilter::all().with_statuses([Running, Pending])).await?, pick(|i| i % 4 != 1));
    assert_eq!(runs_of(&t, &RunFilter::all().with_statuses([Success])).await?, []);
    assert_eq!(runs_of(&t, &RunFilter::all().with_statuses([])).await?, []);
    assert_eq!(runs_of(&t, &RunFilter::all().with_trigger("api".parse()?)).await?, pick(|i| i % 2 == 1));
    assert_eq!(runs_of(&t, &RunFilter::all().created_in(times[3]..times[7])).await?, pick(|i| (3..7).contains(&i)), "its start is in it, its end is not");
    assert_eq!(runs_of(&t, &RunFilter::all().created_in(times[7]..times[3])).await?, [], "a time that is none");
    let all = RunFilter::of(one).with_statuses([Running, Cancelled]).with_trigger("api".parse()?).created_in(times[1]..times[11]);
    assert_eq!(runs_of(&t, &all).await?, pick(|i| i % 3 != 0 && i % 4 != 0 && i % 2 == 1 && (1..11).contains(&i)));
    assert_eq!(runs_of(&t, &RunFilter::of(WorkflowId::generate())).await?, []);
    Ok(())
}}

case! { G6, g6_tasks_are_filtered_by_status(t) {
    use ork_state_api::TaskStatus::{Dispatched, Failed, Pending, Success};
    let run = t.start("a b c d:a e").await?.id;
    let claimed = t.claim(2).await?;
    t.succeed(&claimed[0]).await?;
    for (statuses, wanted) in [(vec![Pending], "cde"), (vec![Success, Dispatched], "ab"), (vec![Failed], ""), (vec![], "")] {
        let (mut names, mut page) = (String::new(), PageRequest::first(Limit::ONE));
        loop {
            let found = t.db().list_tasks(ListTasks::of(run, page).with_statuses(statuses.clone())).await?;
            names.extend(found.items.iter().map(|task| task.name.to_string()));
            match found.next {
                Some(key) => page = PageRequest::after(key, Limit::ONE),
                None => break,
            }
        }
        assert_eq!(names, wanted, "{statuses:?}");
    }
    Ok(())
}}

async fn search(t: &Ctx, text: &str) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let filter = WorkflowFilter::name_contains(text.parse()?);
    let (mut all, mut page) = (Vec::new(), PageRequest::first(Limit::new(2)?));
    loop {
        let found = t.db().list_workflows(ListWorkflows::new(filter.clone(), page)).await?;
        all.extend(found.items.iter().map(|workflow| workflow.name.to_string()));
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(2)?),
            None => break,
        }
    }
    assert_eq!(t.db().count_workflows(filter).await?, all.len() as u64);
    Ok(all)
}

case! { G6, g6_a_search_ignores_the_case_of_any_script(t) {
    name_workflows(&t, &["Étude", "étude 2", "ETUDE", "Загрузка", "загрузка ночью", "straße"]).await?;
    assert_eq!(search(&t, "ÉTUDE").await?, ["Étude", "étude 2"]);
    assert_eq!(search(&t, "etude").await?, ["ETUDE"], "accents matter");
    assert_eq!(search(&t, "ЗАГРУЗКА").await?, ["Загрузка", "загрузка ночью"]);
    assert_eq!(search(&t, "Strasse").await?.len(), 0);
    assert_eq!(search(&t, "").await?.len(), 6);
    Ok(())
}}

case! { G6, g6_a_search_takes_its_text_literally(t) {
    name_workflows(&t, &["100%", "100 percent", "a_b", "axb", "back\\slash", "st*r", "quo'te", "[a]"]).await?;
    for (text, wanted) in [("%", "100%"), ("_", "a_b"), ("\\", "back\\slash"), ("*", "st*r"), ("'", "quo'te"), ("[a]", "[a]")] {
        assert_eq!(search(&t, text).await?, [wanted], "{text}");
    }
    assert_eq!(search(&t, "a%b").await?.len(), 0);
    Ok(())
}}

case! { G6, g6_a_search_pages_over_many_names(t) {
    for index in 0..30 {
        t.db().create_workflow(NewWorkflow::new(format!("{}-{index:02}", if index % 3 == 0 { "Hit" } else { "miss" }).try_into()?, dag("a")?)).await?;
    }
    let wanted: Vec<String> = (0..30).filter(|index| index % 3 == 0).map(|index| format!("Hit-{index:02}")).collect();
    assert_eq!(search(&t, "hIt").await?, wanted);
    Ok(())
}}
