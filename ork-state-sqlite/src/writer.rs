//! The one connection that writes, and group commit.
//!
//! A task owns the connection and runs the calls that arrive through a queue. All calls that wait
//! at one moment run in one transaction, each in its own savepoint. They are answered after the
//! commit. So many callers share one sync of the disk, none is answered before its write is
//! durable, and a failing call fails alone.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ork_state_api::{Error, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{mpsc, oneshot};

use crate::error::{self, Attempt, Fault, Stage};
use crate::options::Location;
use crate::schema;
use crate::signal::Signal;
use crate::sql::run_sql;

/// The most calls in one transaction. This bounds how long the first of them waits for the last.
const MAX_CALLS: usize = 128;

/// If the other calls of a transaction took longer than this, calls that hand out leases wait for
/// the next one. Otherwise the leases would run out before the commit (rule T2).
const SOON: Duration = Duration::from_millis(10);

/// One process may write all the time, and SQLite gives the write lock to whoever asks just when it
/// is free. So every so often the writer checks whether another process waits. If so, it leaves the
/// lock free until that process has it. It waits no longer than that process may sleep between two
/// tries (SQLite's longest is 100 ms).
const TURN: Duration = Duration::from_millis(100);
const HANDOVER: Duration = Duration::from_millis(110);

/// Running work on a connection.
pub(crate) type Work<'c, T> = Pin<Box<dyn Future<Output = Attempt<T>> + Send + 'c>>;

/// The handle of the task that writes. The task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    queue: mpsc::UnboundedSender<Box<dyn Job>>,
}

impl Writer {
    /// Starts the task on this connection, which was opened with the options in `opened`.
    pub(crate) fn start(
        location: Location,
        opened: SqliteConnectOptions,
        connection: SqliteConnection,
        signal: Signal,
    ) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        tokio::spawn(
            Serving { location, opened, connection: Some(connection), signal, turn: Instant::now() }
                .serve(jobs),
        );
        Self { queue }
    }

    /// Runs work in a transaction and answers after its commit. Once polled the work is done, even
    /// if the future is dropped (rule G9).
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.queue(work, Mode::InTransaction).await
    }

    /// Like `run`, for work that hands out leases. It runs at the end of the transaction.
    pub(crate) async fn run_lease<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.queue(work, Mode::Lease).await
    }

    /// Runs work that makes its own transaction, between those of others.
    pub(crate) async fn run_alone<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        self.queue(work, Mode::Alone).await
    }

    async fn queue<T, F>(&self, work: F, mode: Mode) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let call = Call { work: Some(work), result: None, reply, mode };
        self.queue.send(Box::new(call)).map_err(|_| error::gone())?;
        answer.await.unwrap_or_else(|_| Err(error::gone()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    InTransaction,
    /// In a transaction. It hands out leases, whose time counts from when it runs. So its answer
    /// must not wait long.
    Lease,
    Alone,
}

/// A call in the queue, whatever its type.
trait Job: Send {
    fn mode(&self) -> Mode;
    /// Runs it and keeps its result. Returns whether it succeeded.
    fn run<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
    /// The driver's error when it was run, if there was one.
    fn driver_fault(&self) -> Option<Arc<sqlx::Error>>;
    /// Answers the caller with its result, or with an error if the transaction failed.
    fn answer(self: Box<Self>, location: &Location, failure: Option<&Failure>);
}

struct Call<T, F> {
    work: Option<F>,
    result: Option<Attempt<T>>,
    reply: oneshot::Sender<Result<T>>,
    mode: Mode,
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send,
{
    fn mode(&self) -> Mode {
        self.mode
    }

    fn run<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            let Some(work) = self.work.take() else { return false };
            let result = guarded(work(connection)).await;
            self.result.insert(result).is_ok()
        })
    }

    fn driver_fault(&self) -> Option<Arc<sqlx::Error>> {
        match &self.result {
            Some(Err(Fault::Driver(error))) => Some(Arc::clone(error)),
            _ => None,
        }
    }

    fn answer(self: Box<Self>, location: &Location, failure: Option<&Failure>) {
        let answer = match (self.result, failure) {
            // Its own result may come from data that another call had written.
            (_, Some(failure)) => Err(failure.describe(location)),
            (Some(result), None) => result.map_err(|fault| fault.into_error(location)),
            (None, None) => Err(Error::internal("a call was not run")),
        };
        // The caller may have gone. Its work is done all the same.
        let _ = self.reply.send(answer);
    }
}

/// Polls work so that a bug in one call cannot end the task that serves all others.
pub(crate) async fn guarded<T>(mut work: Work<'_, T>) -> Attempt<T> {
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or_else(|_| {
            Poll::Ready(Err(Error::internal("a call panicked; the panic's message says where").into()))
        })
    })
    .await
}

/// Why a transaction failed.
struct Failure {
    cause: Fault,
    stage: Stage,
}

impl Failure {
    fn new(cause: impl Into<Fault>, stage: Stage) -> Self {
        Self { cause: cause.into(), stage }
    }

    /// The statement between two calls failed. If the work before it failed, that is the cause.
    fn caused(first: Option<Arc<sqlx::Error>>, then: sqlx::Error) -> Self {
        Self { cause: Fault::Driver(first.unwrap_or_else(|| Arc::new(then))), stage: Stage::Work }
    }

    fn describe(&self, location: &Location) -> Error {
        match &self.cause {
            Fault::Answer(error) => error.clone(),
            Fault::Driver(cause) => error::describe(location, cause, self.stage),
        }
    }

    /// Whether the connection is as it was before the transaction.
    fn left_nothing(&self) -> bool {
        match &self.cause {
            Fault::Answer(_) => true,
            // The lock could not be obtained.
            Fault::Driver(cause) => self.stage == Stage::Work && error::is_busy(cause),
        }
    }
}

/// The task's state.
struct Serving {
    location: Location,
    opened: SqliteConnectOptions,
    /// None after an error that may have left the connection broken.
    connection: Option<SqliteConnection>,
    signal: Signal,
    /// When the writer last checked whether others wait.
    turn: Instant,
}

impl Serving {
    async fn serve(mut self, mut queue: mpsc::UnboundedReceiver<Box<dyn Job>>) {
        let mut waiting = Vec::with_capacity(MAX_CALLS);
        while queue.recv_many(&mut waiting, MAX_CALLS).await > 0 {
            let mut jobs = waiting.drain(..).peekable();
            while let Some(job) = jobs.next() {
                let mut batch = vec![job];
                if batch[0].mode() != Mode::Alone {
                    while let Some(job) = jobs.next_if(|job| job.mode() != Mode::Alone) {
                        batch.push(job);
                    }
                }
                batch.sort_by_key(|job| job.mode() == Mode::Lease);
                while !batch.is_empty() {
                    let (ran, failure) = self.run(&mut batch).await;
                    for job in batch.drain(..ran) {
                        job.answer(&self.location, failure.as_ref());
                    }
                    self.take_turns().await;
                }
            }
        }
        if let Some(connection) = self.connection {
            // Checkpoints and removes the WAL if no other process has the file open. If that fails,
            // nothing is lost.
            let _ = connection.close().await;
        }
    }

    /// Runs a batch and commits. Returns how many of its calls to answer: all, except perhaps those
    /// that hand out leases.
    async fn run(&mut self, batch: &mut [Box<dyn Job>]) -> (usize, Option<Failure>) {
        match self.connection().await {
            Err(failure) => (batch.len(), Some(failure)),
            Ok(connection) if batch[0].mode() == Mode::Alone => {
                if !batch[0].run(connection).await {
                    self.restore().await;
                }
                (batch.len(), None)
            }
            Ok(_) => match self.transaction(batch).await {
                Ok(calls) => (calls, None),
                Err(failure) => {
                    if !failure.left_nothing() {
                        self.restore().await;
                    }
                    (batch.len(), Some(failure))
                }
            },
        }
    }

    /// Runs the jobs of a batch, each in a savepoint of one transaction, and commits. Returns how
    /// many it ran. Jobs that hand out leases are left for later if the others took long.
    ///
    /// The statement that ends a savepoint and the one that begins the next are sent together.
    async fn transaction(&mut self, batch: &mut [Box<dyn Job>]) -> Result<usize, Failure> {
        const ROLLBACK: &str = "ROLLBACK TO call";
        let signal = self.signal.clone();
        let connection = self.connection().await?;
        signal.set_waiting(true);
        let begin = run_sql(connection, "BEGIN IMMEDIATE; SAVEPOINT call").await;
        signal.set_waiting(false);
        begin.map_err(|error| Failure::new(error, Stage::Work))?;
        // Under the write lock, so that nobody migrates from here on.
        if let Err(cause) = schema::check(connection).await {
            let refused = matches!(cause, Fault::Answer(_));
            if refused {
                run_sql(connection, "ROLLBACK").await.map_err(|error| Failure::new(error, Stage::Work))?;
            }
            return Err(Failure { cause, stage: Stage::Work });
        }
        // The wait for the write lock does not count.
        let began = Instant::now();
        let mut next = None;
        let (mut calls, mut any_went_well) = (0, false);
        // The driver's first error. It may have made SQLite roll everything back by itself, for
        // example on a full disk. Then the next statement fails because its savepoint is gone, but
        // that is not the cause.
        let mut first_fault = None;
        for job in batch {
            if job.mode() == Mode::Lease && calls > 0 && began.elapsed() > SOON {
                break;
            }
            if let Some(next) = next {
                run_sql(connection, next)
                    .await
                    .map_err(|error| Failure::caused(first_fault.take(), error))?;
            }
            calls += 1;
            let went_well = job.run(connection).await;
            any_went_well |= went_well;
            first_fault = first_fault.or_else(|| job.driver_fault());
            // A savepoint stays open after it is rolled back.
            next = Some(if went_well { "RELEASE call; SAVEPOINT call" } else { ROLLBACK });
        }
        if next == Some(ROLLBACK) {
            run_sql(connection, ROLLBACK)
                .await
                .map_err(|error| Failure::caused(first_fault.take(), error))?;
        }
        let end = if any_went_well { "COMMIT" } else { "ROLLBACK" };
        run_sql(connection, end).await.map_err(|error| Failure::new(error, Stage::Commit))?;
        if any_went_well {
            signal.committed();
        }
        Ok(calls)
    }

    /// Leaves the write lock to another process that waits for it, if that one's turn has come.
    async fn take_turns(&mut self) {
        const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
        if self.turn.elapsed() < TURN {
            return;
        }
        let begun = Instant::now();
        while self.signal.is_awaited() && begun.elapsed() < HANDOVER {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        self.turn = Instant::now();
    }

    async fn connection(&mut self) -> Result<&mut SqliteConnection, Failure> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let opened = self.opened.connect().await;
                opened.map_err(|error| Failure::new(error, Stage::Work))?
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Restores a connection without a transaction. It opens a new one, unless the database lives
    /// in memory in this one.
    async fn restore(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // It fails when SQLite has rolled back by itself.
        let _ = run_sql(&mut connection, "ROLLBACK").await;
        match self.location {
            Location::Memory => self.connection = Some(connection),
            Location::File(_) => drop(connection.close().await),
        }
    }
}

impl std::fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// Runs work in a read-only transaction, so all its statements see one state.
pub(crate) async fn reading<T, F>(connection: &mut SqliteConnection, work: F) -> Attempt<T>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T>,
{
    run_sql(connection, "BEGIN").await?;
    let result = guarded(work(connection)).await;
    // After a failure of the driver the connection is not used again, so this need not succeed.
    let ended = run_sql(connection, "ROLLBACK").await;
    let value = result?;
    ended?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteOptions;
    use ork_state_api::ErrorKind;

    async fn start(options: &SqliteOptions) -> Writer {
        let mut connection = options.writer().connect().await.unwrap();
        schema::migrate(&mut connection, schema::Migrate::Commit).await.unwrap();
        run_sql(&mut connection, "CREATE TABLE IF NOT EXISTS t (x)").await.unwrap();
        let signal = Signal::new(&options.location);
        Writer::start(options.location.clone(), options.writer(), connection, signal)
    }

    async fn in_a_file() -> (tempfile::TempDir, SqliteOptions) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        std::fs::File::create(&path).unwrap();
        (directory, SqliteOptions::new(path).unwrap())
    }

    async fn sql(writer: &Writer, sql: &'static str) -> Result<()> {
        writer.run(move |connection| Box::pin(async move { Ok(run_sql(connection, sql).await?) })).await
    }

    /// Fails after it has written.
    async fn refused(writer: &Writer) -> Result<()> {
        writer
            .run(|connection| {
                Box::pin(async move {
                    run_sql(connection, "INSERT INTO t VALUES ('refused')").await?;
                    Err(Error::conflict("as the test wants").into())
                })
            })
            .await
    }

    async fn rows(writer: &Writer) -> Vec<String> {
        writer
            .run(|connection| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar("SELECT x FROM t ORDER BY x").fetch_all(connection).await?)
                })
            })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_call_that_fails_takes_back_its_own_writes_only() {
        let (_directory, in_a_file) = in_a_file().await;
        for options in [SqliteOptions::in_memory(), in_a_file] {
            let writer = start(&options).await;
            // One task polls them all before the writer's task runs, so they are one batch.
            let (a, b, c) = tokio::join!(
                sql(&writer, "INSERT INTO t VALUES ('a')"),
                refused(&writer),
                sql(&writer, "INSERT INTO t VALUES ('c')"),
            );
            a.unwrap();
            c.unwrap();
            assert!(matches!(b.unwrap_err().kind(), ErrorKind::Conflict { .. }));
            assert_eq!(rows(&writer).await, ["a", "c"]);
        }
    }

    #[tokio::test]
    async fn callers_that_wait_share_a_commit() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options).await;
        let mut other = options.reader().connect().await.unwrap();
        let mut committed = async || -> i64 {
            sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut other).await.unwrap()
        };
        let insert = || sql(&writer, "INSERT INTO t VALUES ('x')");
        let (mut first, mut second) = (std::pin::pin!(insert()), std::pin::pin!(insert()));
        let both_wait = poll_fn(|context| {
            Poll::Ready(
                first.as_mut().poll(context).is_pending() & second.as_mut().poll(context).is_pending(),
            )
        });
        assert!(both_wait.await);
        first.await.unwrap();
        assert_eq!(committed().await, 2, "the second call was committed with the first");
        second.await.unwrap();
    }

    /// As SQLite does by itself, for example when the disk is full.
    #[tokio::test]
    async fn when_all_is_rolled_back_nobody_is_told_that_it_went_well() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options).await;
        let rolled_back = writer.run(|connection| {
            Box::pin(async move {
                run_sql(connection, "ROLLBACK").await?;
                Err::<(), _>(Error::conflict("as the test wants").into())
            })
        });
        let (a, b, c) = tokio::join!(
            sql(&writer, "INSERT INTO t VALUES ('a')"),
            rolled_back,
            sql(&writer, "INSERT INTO t VALUES ('c')"),
        );
        assert!(a.is_err() && b.is_err() && c.is_err());
        sql(&writer, "INSERT INTO t VALUES ('d')").await.unwrap();
        assert_eq!(rows(&writer).await, ["d"]);
    }

    #[tokio::test]
    async fn a_full_disk_is_unavailable_and_passes() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options).await;
        let error = sql(&writer, "PRAGMA max_page_count = 3; INSERT INTO t VALUES (zeroblob(100000))")
            .await
            .unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("the disk is full"), "{error}");
        assert!(error.to_string().contains("t.db"), "{error}");
        sql(&writer, "PRAGMA max_page_count = 100000; INSERT INTO t VALUES ('b')").await.unwrap();
        assert_eq!(rows(&writer).await, ["b"]);
    }

    /// SQLite rolls back by itself then, including the savepoints. The next statement's error is
    /// not the cause.
    #[tokio::test]
    async fn a_disk_that_is_full_for_one_call_is_so_for_all_that_share_its_transaction() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options).await;
        let full = sql(&writer, "PRAGMA max_page_count = 3; INSERT INTO t VALUES (zeroblob(1000000))");
        let (a, b, c, d) = tokio::join!(
            sql(&writer, "INSERT INTO t VALUES ('a')"),
            full,
            sql(&writer, "INSERT INTO t VALUES ('c')"),
            refused(&writer),
        );
        for error in [a.unwrap_err(), b.unwrap_err(), c.unwrap_err(), d.unwrap_err()] {
            assert!(matches!(error.kind(), ErrorKind::Unavailable { .. }), "{error:?}");
            assert!(error.is_retryable() && error.to_string().contains("the disk is full"), "{error}");
        }
        sql(&writer, "INSERT INTO t VALUES ('e')").await.unwrap();
        assert_eq!(rows(&writer).await, ["e"]);
    }

    #[tokio::test]
    async fn a_panic_is_the_callers_own() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options).await;
        async fn panics(_: &mut SqliteConnection) -> Attempt<()> {
            panic!("as the test wants")
        }
        let panics = writer.run(|connection| Box::pin(panics(connection)));
        let (a, b) = tokio::join!(sql(&writer, "INSERT INTO t VALUES ('a')"), panics);
        a.unwrap();
        assert!(matches!(b.unwrap_err().kind(), ErrorKind::Internal { .. }));
        assert_eq!(rows(&writer).await, ["a"]);
    }

    /// Rule G9.
    #[tokio::test]
    async fn work_whose_caller_has_gone_is_done() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options).await;
        {
            let mut call = std::pin::pin!(sql(&writer, "INSERT INTO t VALUES ('a')"));
            let polled = poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending())).await;
            assert!(polled, "the writer had no chance to answer yet");
        }
        assert_eq!(rows(&writer).await, ["a"]);
    }

    #[tokio::test]
    async fn a_lock_that_is_held_is_unavailable_and_passes() {
        let (_directory, options) = in_a_file().await;
        let writer = start(&options.clone().with_busy_timeout(Duration::ZERO)).await;
        let mut other = options.writer().connect().await.unwrap();
        run_sql(&mut other, "BEGIN IMMEDIATE").await.unwrap();
        let error = sql(&writer, "INSERT INTO t VALUES ('a')").await.unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("busy_timeout"), "{error}");
        run_sql(&mut other, "COMMIT").await.unwrap();
        sql(&writer, "INSERT INTO t VALUES ('b')").await.unwrap();
        assert_eq!(rows(&writer).await, ["b"]);
    }
}
