//! A workflow's tasks and what each depends on, checked once so that no backend has to.

use std::collections::HashMap;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::limits::{MAX_DAG_BYTES, MAX_DAG_EDGES, MAX_DAG_TASKS, MAX_RETRIES};
use crate::transfer::to_hex;
use crate::{Error, Json, Label, Result, TaskName};

/// What a task is, as its workflow's author wrote it.
///
/// ```
/// # use ork_state_api::{Json, TaskSpec};
/// let load = TaskSpec::named("load")?
///     .after_named(["extract"])?
///     .with_params(Json::parse(r#"{"table": "orders"}"#)?)
///     .with_max_retries(3);
/// # Ok::<(), ork_state_api::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct TaskSpec {
    /// Unique within the DAG.
    #[serde(rename = "task_name")]
    pub name: TaskName,
    /// What runs it, such as `process` or `cloudrun`. The store gives it no meaning.
    pub executor_type: Label,
    /// The tasks that must succeed first. The canonical form always has them: one where they are
    /// missing is no DAG, it must not read as "no dependencies".
    pub depends_on: Vec<TaskName>,
    /// What the executor is given.
    #[serde(default, deserialize_with = "present")]
    pub params: Option<Json>,
    /// The shape of what the task takes and gives, for type checks between tasks.
    #[serde(default, deserialize_with = "present")]
    pub signature: Option<Json>,
    /// How many attempts may follow the first: at most 1,000,000.
    ///
    /// A lapsed lease and a timeout count as failed attempts. With the default 0, one killed worker
    /// fails the task: set at least 1.
    #[serde(default)]
    pub max_retries: u32,
    /// How long one attempt may take, in seconds.
    ///
    /// It takes effect only if the worker reports `running`, or defers the task, and some scheduler
    /// calls [`expire_timeouts`](crate::TaskStore::expire_timeouts).
    #[serde(default)]
    pub timeout_seconds: Option<u32>,
}

/// A JSON `null` in the canonical form means that there is none: the form cannot tell the two
/// apart.
pub(crate) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Json>, D::Error> {
    let json = Json::deserialize(deserializer)?;
    Ok(Some(json).filter(|json| json.as_str() != "null"))
}

impl TaskSpec {
    /// A task that depends on nothing and is tried once.
    #[must_use]
    pub const fn new(name: TaskName, executor_type: Label) -> Self {
        Self {
            name,
            executor_type,
            depends_on: Vec::new(),
            params: None,
            signature: None,
            max_retries: 0,
            timeout_seconds: None,
        }
    }

    /// A task of this name that a `process` runs, depends on nothing and is tried once.
    ///
    /// # Errors
    /// `InvalidInput` for what is no [`TaskName`].
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self::new(name.parse()?, Label::constant("process")))
    }

    /// Sets what runs it.
    #[must_use]
    pub fn with_executor(mut self, executor_type: Label) -> Self {
        self.executor_type = executor_type;
        self
    }

    /// Makes it wait for the tasks of these names as well.
    ///
    /// # Errors
    /// `InvalidInput` for what is no [`TaskName`].
    pub fn after_named<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        for name in names {
            self.depends_on.push(name.parse()?);
        }
        Ok(self)
    }

    /// Makes it wait for these as well.
    #[must_use]
    pub fn after(mut self, tasks: impl IntoIterator<Item = TaskName>) -> Self {
        self.depends_on.extend(tasks);
        self
    }

    /// Sets the parameters.
    #[must_use]
    pub fn with_params(mut self, params: Json) -> Self {
        self.params = Some(params);
        self
    }

    /// Sets the signature.
    #[must_use]
    pub fn with_signature(mut self, signature: Json) -> Self {
        self.signature = Some(signature);
        self
    }

    /// Sets how many attempts may follow the first.
    #[must_use]
    pub const fn with_max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// Sets how long one attempt may take, in seconds: see [`TaskSpec::timeout_seconds`].
    #[must_use]
    pub const fn with_timeout_seconds(mut self, seconds: u32) -> Self {
        self.timeout_seconds = Some(seconds);
        self
    }
}

/// A directed acyclic graph of tasks that is known to be sound: names are unique, every dependency
/// is there, nothing waits for itself however indirectly, and all sizes are within the
/// [limits](crate::limits).
///
/// A task's *index* is its place in the list that the DAG was made of, from 0.
///
/// ```
/// # use ork_state_api::{Dag, ErrorKind, TaskSpec};
/// let dag = Dag::new([TaskSpec::named("extract")?, TaskSpec::named("load")?.after_named(["extract"])?])?;
/// assert_eq!(dag.dependents(0), [1]);
///
/// let cyclic = [TaskSpec::named("a")?.after_named(["b"])?, TaskSpec::named("b")?.after_named(["a"])?];
/// let cyclic = Dag::new(cyclic);
/// assert!(matches!(cyclic.unwrap_err().kind(), ErrorKind::InvalidInput { .. }));
/// # Ok::<(), ork_state_api::Error>(())
/// ```
///
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dag(Arc<Checked>);

#[derive(Debug)]
struct Checked {
    tasks: Vec<TaskSpec>,
    dependents: Vec<Vec<u32>>,
    canonical: Json,
}

/// Two DAGs are equal when their canonical forms are.
impl PartialEq for Dag {
    fn eq(&self, other: &Self) -> bool {
        self.0.canonical == other.0.canonical
    }
}

impl Eq for Dag {}

/// As its canonical form.
impl Serialize for Dag {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.canonical.serialize(serializer)
    }
}

/// Checked like any other.
impl<'de> Deserialize<'de> for Dag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(Vec::<TaskSpec>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Dag {
    /// Checks the tasks and takes them.
    ///
    /// # Errors
    /// `InvalidInput` that names the task and what is wrong with it: a name used twice, a
    /// dependency that is missing or listed twice, a cycle (all of its names), a size beyond the
    /// limits.
    pub fn new(tasks: impl IntoIterator<Item = TaskSpec>) -> Result<Self> {
        let mut tasks: Vec<TaskSpec> = tasks.into_iter().collect();
        // One form for "no parameters", see `present`.
        for task in &mut tasks {
            task.params.take_if(|json| json.as_str() == "null");
            task.signature.take_if(|json| json.as_str() == "null");
        }
        check_sizes(&tasks)?;
        let dependencies = resolve(&tasks)?;
        let mut dependents = vec![Vec::new(); tasks.len()];
        for (index, of) in (0_u32..).zip(&dependencies) {
            for &dependency in of {
                dependents[dependency as usize].push(index);
            }
        }
        check_acyclic(&tasks, &dependencies, &dependents)?;
        let canonical = canonical(&tasks)?;
        Ok(Self(Arc::new(Checked { tasks, dependents, canonical })))
    }

    /// Reads the canonical form back, for backends.
    ///
    /// # Errors
    /// `InvalidInput` for JSON that is not an array of tasks, or of such as [`new`](Self::new)
    /// refuses.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|source| {
            Error::invalid("DAG", "is not an array of tasks that fit together").with_source(source)
        })
    }

    /// The canonical form, which is what backends store and what the content hash is taken over.
    ///
    /// The compact JSON (no white space outside of the values that were given as JSON) of the array
    /// of tasks in index order, each an object with the keys `task_index`, `task_name`,
    /// `executor_type`, `depends_on`, `params`, `signature` in this order, none left out (`null`
    /// where there is nothing), then `max_retries` unless it is 0 and `timeout_seconds` unless
    /// there is none. Parameters and signatures are the text that was given.
    ///
    /// Ork's form has the same fields, but its hash is over JSON with sorted keys. So a snapshot
    /// that Ork stored has another hash here.
    #[must_use]
    pub fn to_json(&self) -> &Json {
        &self.0.canonical
    }

    /// The lower-case hex SHA-256 of the canonical form.
    #[must_use]
    pub fn content_hash(&self) -> String {
        to_hex(&Sha256::digest(self.0.canonical.as_str()))
    }

    /// The tasks in index order.
    #[must_use]
    pub fn tasks(&self) -> &[TaskSpec] {
        &self.0.tasks
    }

    /// How many tasks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.tasks.len()
    }

    /// Whether there is no task. A run of it succeeds as soon as it starts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.tasks.is_empty()
    }

    /// The indexes that wait for the task at this index, ascending. Empty for an index beyond the
    /// DAG.
    #[must_use]
    pub fn dependents(&self, index: usize) -> &[u32] {
        self.0.dependents.get(index).map_or(&[], Vec::as_slice)
    }
}

fn check_sizes(tasks: &[TaskSpec]) -> Result<()> {
    if tasks.len() > MAX_DAG_TASKS {
        let reason = format!("has {} tasks, at most {MAX_DAG_TASKS} are allowed", tasks.len());
        return Err(Error::invalid("DAG", reason));
    }
    let edges: usize = tasks.iter().map(|task| task.depends_on.len()).sum();
    if edges > MAX_DAG_EDGES {
        let reason = format!("has {edges} dependencies, at most {MAX_DAG_EDGES} are allowed");
        return Err(Error::invalid("DAG", reason));
    }
    for task in tasks {
        let name = &task.name;
        if task.max_retries > MAX_RETRIES {
            let reason = format!("{name:?} asks for {} retries, at most {MAX_RETRIES}", task.max_retries);
            return Err(Error::invalid("task", reason));
        }
        if !task.timeout_seconds.is_none_or(|seconds| (1..=i32::MAX as u32).contains(&seconds)) {
            return Err(Error::invalid(
                "task",
                format!("{name:?} has a timeout that is not 1 to {} seconds", i32::MAX),
            ));
        }
    }
    Ok(())
}

/// Turns the names of dependencies into indexes.
fn resolve(tasks: &[TaskSpec]) -> Result<Vec<Vec<u32>>> {
    let mut by_name = HashMap::with_capacity(tasks.len());
    for (index, task) in (0_u32..).zip(tasks) {
        if by_name.insert(&task.name, index).is_some() {
            return Err(Error::invalid("DAG", format!("has two tasks named {:?}", task.name)));
        }
    }
    let mut seen = vec![u32::MAX; tasks.len()];
    (0_u32..)
        .zip(tasks)
        .map(|(index, task)| {
            let mut of = Vec::with_capacity(task.depends_on.len());
            for name in &task.depends_on {
                let Some(&dependency) = by_name.get(name) else {
                    let reason = format!("{:?} depends on {name:?}, which is not in the DAG", task.name);
                    return Err(Error::invalid("task", reason));
                };
                if std::mem::replace(&mut seen[dependency as usize], index) == index {
                    return Err(Error::invalid("task", format!("{:?} lists {name:?} twice", task.name)));
                }
                of.push(dependency);
            }
            Ok(of)
        })
        .collect()
}

/// Takes away whatever waits for nothing that is left (Kahn 1962); what remains holds a cycle.
fn check_acyclic(tasks: &[TaskSpec], dependencies: &[Vec<u32>], dependents: &[Vec<u32>]) -> Result<()> {
    let mut unmet: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut free: Vec<usize> = (0..tasks.len()).filter(|&index| unmet[index] == 0).collect();
    let mut taken = 0;
    while let Some(index) = free.pop() {
        taken += 1;
        for &dependent in &dependents[index] {
            let left = &mut unmet[dependent as usize];
            *left -= 1;
            if *left == 0 {
                free.push(dependent as usize);
            }
        }
    }
    if taken == tasks.len() {
        return Ok(());
    }
    Err(Error::invalid("DAG", format!("has a cycle: {}", describe_cycle(tasks, dependencies, &unmet))))
}

/// Follows unmet dependencies until a task comes a second time.
fn describe_cycle(tasks: &[TaskSpec], dependencies: &[Vec<u32>], unmet: &[usize]) -> String {
    const SHOWN: usize = 10;
    let mut path: Vec<usize> = Vec::new();
    let mut visited = vec![false; tasks.len()];
    let mut next = unmet.iter().position(|&left| left > 0);
    while let Some(index) = next {
        path.push(index);
        if std::mem::replace(&mut visited[index], true) {
            break;
        }
        next = dependencies[index].iter().map(|&d| d as usize).find(|&d| unmet[d] > 0);
    }
    let start = path.last().and_then(|last| path.iter().position(|index| index == last)).unwrap_or(0);
    let cycle = &path[start..];
    let mut shown: Vec<String> =
        cycle.iter().take(SHOWN).map(|&index| format!("{:?}", tasks[index].name)).collect();
    if cycle.len() > SHOWN {
        shown.push(format!("... ({} tasks)", cycle.len() - 1));
    }
    shown.join(" -> ")
}

fn canonical(tasks: &[TaskSpec]) -> Result<Json> {
    #[derive(Serialize)]
    struct Canonical<'a> {
        task_index: usize,
        task_name: &'a TaskName,
        executor_type: &'a Label,
        depends_on: &'a [TaskName],
        params: Option<&'a Json>,
        signature: Option<&'a Json>,
        #[serde(skip_serializing_if = "is_zero")]
        max_retries: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    }
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
    fn is_zero(number: &u32) -> bool {
        *number == 0
    }
    let rows: Vec<Canonical<'_>> = tasks
        .iter()
        .enumerate()
        .map(|(task_index, task)| Canonical {
            task_index,
            task_name: &task.name,
            executor_type: &task.executor_type,
            depends_on: &task.depends_on,
            params: task.params.as_ref(),
            signature: task.signature.as_ref(),
            max_retries: task.max_retries,
            timeout_seconds: task.timeout_seconds,
        })
        .collect();
    let text = serde_json::to_string(&rows)
        .map_err(|source| Error::internal("the DAG does not serialise").with_source(source))?;
    if text.len() > MAX_DAG_BYTES {
        let reason = format!("has {} bytes in all, at most {MAX_DAG_BYTES} are allowed", text.len());
        return Err(Error::invalid("DAG", reason));
    }
    Ok(Json::trusted(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// `"a b:a c:a,b"` is three tasks with these dependencies.
    fn dag(text: &str) -> Result<Dag> {
        Dag::new(text.split_whitespace().map(|task| {
            let (name, deps) = task.split_once(':').unwrap_or((task, ""));
            let deps = deps.split(',').filter(|dep| !dep.is_empty()).map(|dep| dep.parse().unwrap());
            TaskSpec::new(name.parse().unwrap(), "process".parse().unwrap()).after(deps)
        }))
    }

    #[rstest]
    #[case::empty("")]
    #[case::one("a")]
    #[case::forward_reference("a:b b")]
    #[case::diamond("a b:a c:a d:b,c")]
    fn sound(#[case] text: &str) {
        let dag = dag(text).unwrap();
        assert_eq!(Dag::from_json(dag.to_json().as_str()).unwrap(), dag);
    }

    #[rstest]
    #[case::twice("a a", "two tasks named \"a\"")]
    #[case::missing("a:b", "depends on \"b\", which is not in the DAG")]
    #[case::listed_twice("a b:a,a", "lists \"a\" twice")]
    #[case::itself("a:a", "cycle: \"a\" -> \"a\"")]
    #[case::cycle("x a:c b:a c:b", "cycle: \"a\" -> \"c\" -> \"b\" -> \"a\"")]
    #[case::behind_a_cycle("a:b b:a c:b", "cycle: \"a\" -> \"b\" -> \"a\"")]
    fn unsound(#[case] text: &str, #[case] reason: &str) {
        let error = dag(text).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn missing_dependencies_are_not_no_dependencies() {
        let stored = r#"[{"task_index":0,"task_name":"a","executor_type":"process"}]"#;
        let error = format!("{:?}", Dag::from_json(stored).unwrap_err());
        assert!(error.contains("depends_on"), "{error}");
    }

    #[test]
    fn a_huge_cycle_is_named_briefly() {
        let text: String = (0..10_000).map(|i| format!("t{i}:t{} ", (i + 1) % 10_000)).collect();
        let error = dag(&text).unwrap_err().to_string();
        assert!(error.len() < 300 && error.contains("10000 tasks"), "{error}");
    }

    #[test]
    fn the_canonical_form_is_orks() {
        let task = TaskSpec::new("a".parse().unwrap(), "process".parse().unwrap());
        let dag = Dag::new([task.clone().with_params(Json::parse("{\"x\":1e2}").unwrap())]).unwrap();
        assert_eq!(
            dag.to_json().as_str(),
            r#"[{"task_index":0,"task_name":"a","executor_type":"process","depends_on":[],"params":{"x":1e2},"signature":null}]"#
        );
        let with_more = Dag::new([task.with_max_retries(2).with_timeout_seconds(30)]).unwrap();
        assert!(
            with_more
                .to_json()
                .as_str()
                .ends_with(r#""signature":null,"max_retries":2,"timeout_seconds":30}]"#)
        );
    }

    #[test]
    fn the_hash_is_over_the_canonical_form() {
        // sha256 of the two bytes `[]`
        assert_eq!(
            dag("").unwrap().content_hash(),
            "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
        );
    }
}
