//! A server from the binaries on this machine, in a temporary directory, on a Unix socket.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use sqlx::postgres::PgConnectOptions;

use super::{PostgresServer, SYNCS_TO_DISK, Started, wait_until_it_answers};

/// Where distributions keep the server's binaries, which are seldom on the path.
const PLACES: &[&str] =
    &["/usr/lib/postgresql", "/usr/pgsql", "/usr/local/pgsql", "/opt/homebrew/opt", "/usr/local/opt"];

/// Keeps the server until its standard input ends. That happens at the latest when the process at
/// the other end dies, however it dies. Then it stops the server and removes the directory. `$1` is
/// the directory, `$2` the directory of the binaries, `$3` whether the server syncs to disk. Before
/// that, each line it reads is an [`Order`], which it answers with `done` or `failed`.
///
/// SIGQUIT ends a server at once. When the server starts again, it recovers from its log. A standby
/// has its own directory. When it takes over, the socket that clients know leads to its own, as an
/// address moves from one machine to another.
const KEEPER: &str = r#"
trap '' INT TERM HUP
PATH=$2:$PATH
fsync=$3
serve() {
    "$2/postgres" -D "$3/data" -k "$3" -c listen_addresses= -c max_connections=200 -c logging_collector=off \
        -c fsync=$fsync \
        >>"$1/log" 2>&1 </dev/null &
}
place=$1
number=0
standby=
serve "$1" "$2" "$place"
server=$!
while read -r order; do
    case $order in
    crash)
        kill -QUIT $server
        wait $server
        serve "$1" "$2" "$place"
        server=$!
        ;;
    prepare)
        number=$((number + 1))
        next=$1/$number
        mkdir -m 700 "$next" && pg_basebackup -h "$1" -U postgres -D "$next/data" -c fast -R >>"$1/log" 2>&1
        ;;
    follow)
        serve "$1" "$2" "$next"
        standby=$!
        ;;
    take-over)
        kill -QUIT $server
        wait $server
        rm -rf "$place/data"
        server=$standby standby= place=$next
        pg_ctl promote -w -D "$place/data" >>"$1/log" 2>&1 && ln -sfn "$place/.s.PGSQL.5432" "$1/.s.PGSQL.5432"
        ;;
    esac && echo "done" || echo failed
done
kill -INT $server $standby
wait
rm -rf "$1"
"#;

/// Orders to the server's keeper.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Makes the server crash and start again.
    Crash,
    /// Creates the files of a standby.
    Prepare,
    /// Starts the standby.
    Follow,
    /// Makes the server die for good, and the standby take its place.
    TakeOver,
}

/// A running server.
#[derive(Debug)]
pub(super) struct Process {
    keeper: Child,
}

impl Process {
    /// Gives an order and waits until it is done.
    pub(super) fn order(&mut self, order: Order) -> std::io::Result<()> {
        let (Some(orders), Some(answers)) = (&mut self.keeper.stdin, &mut self.keeper.stdout) else {
            return Err(std::io::Error::other("the server's keeper has no pipe"));
        };
        let word = match order {
            Order::Crash => "crash",
            Order::Prepare => "prepare",
            Order::Follow => "follow",
            Order::TakeOver => "take-over",
        };
        writeln!(orders, "{word}")?;
        let mut answer = String::new();
        BufReader::new(answers).read_line(&mut answer)?;
        match answer.trim() {
            "done" => Ok(()),
            _ => Err(std::io::Error::other(format!("the server's keeper could not do `{word}`"))),
        }
    }

    pub(super) fn stop(mut self) {
        drop(self.keeper.stdin.take());
        // Whatever its exit status, it has ended.
        let _ = self.keeper.wait();
    }
}

/// The user that runs the server, if it must not be this one.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

pub(super) async fn start() -> Result<PostgresServer, String> {
    let binaries = find_binaries().ok_or("no `postgres` and `initdb` on the path or in the usual places")?;
    let user = unprivileged_user()?;
    // A short path: a socket's path may have only 107 bytes.
    let directory = tempfile::Builder::new()
        .prefix("ork-pg-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(place())
        .map_err(|error| format!("no temporary directory: {error}"))?;
    if let Some(user) = user {
        chown(directory.path(), Some(user.uid), Some(user.gid)).map_err(|error| format!("chown: {error}"))?;
    }
    init(&binaries, directory.path(), user)?;
    let keeper = as_user(Command::new("sh"), user)
        .args(["-c", KEEPER, "sh"])
        .arg(directory.path())
        .arg(&binaries)
        .arg(if SYNCS_TO_DISK.load(Ordering::Relaxed) { "on" } else { "off" })
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // An interrupt at the terminal is for us. The server is shut down cleanly after us.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("sh: {error}"))?;
    let process = Process { keeper };
    // From here on the keeper removes it.
    let directory = directory.keep();
    let options =
        PgConnectOptions::new_without_pgpass().socket(&directory).username("postgres").database("postgres");
    if let Err(why) = wait_until_it_answers(&options).await {
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        process.stop();
        return Err(format!("the server {why}\n{}", last_lines(&log)));
    }
    let socket = directory.display().to_string().replace('/', "%2F");
    Ok(PostgresServer {
        origin: format!("{}, {}", version(&binaries), binaries.display()),
        url: (format!("postgres://postgres@{socket}/"), String::new()),
        started: Mutex::new(Started::Process(process)),
    })
}

/// Where the server's directory is made: in memory if there is room, unless the server is to sync.
/// A database has some 300 files. On a disk, creating and removing them takes most of a test's
/// time.
fn place() -> &'static str {
    const MEMORY: &str = "/dev/shm";
    const ROOM_KIB: u64 = 6 << 20;
    if SYNCS_TO_DISK.load(Ordering::Relaxed) {
        return "/tmp";
    }
    let answer = Command::new("df").args(["-Pk", MEMORY]).output();
    let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
    // The last line: device, blocks, used, available, capacity, place.
    let free = text.lines().last().and_then(|line| line.split_whitespace().nth(3));
    match free.and_then(|free| free.parse::<u64>().ok()) {
        Some(ROOM_KIB..) => MEMORY,
        _ => "/tmp",
    }
}

/// Creates the files of a server whose text order is not that of bytes. So a store that relies on
/// that order fails.
fn init(binaries: &Path, directory: &Path, user: Option<User>) -> Result<(), String> {
    let initdb = |locale: &[&str]| {
        as_user(Command::new(binaries.join("initdb")), user)
            .arg("-D")
            .arg(directory.join("data"))
            .args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"])
            .args(locale)
            .current_dir(directory)
            .output()
            .map_err(|error| format!("initdb: {error}"))
    };
    let mut made = initdb(&["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"])?;
    if !made.status.success() {
        // Before version 15, or built without ICU.
        made = initdb(&["--locale=C"])?;
    }
    if made.status.success() {
        return Ok(());
    }
    Err(format!("initdb ended with {}\n{}", made.status, last_lines(&String::from_utf8_lossy(&made.stderr))))
}

fn as_user(mut command: Command, user: Option<User>) -> Command {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// PostgreSQL refuses to run as root.
fn unprivileged_user() -> Result<Option<User>, String> {
    if id("-u", None)? != 0 {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let (Ok(uid), Ok(gid)) = (id("-u", Some(name)), id("-g", Some(name))) {
            return Ok(Some(User { uid, gid }));
        }
    }
    Err("this process is root, as which PostgreSQL does not run, and there is no user `postgres` or `nobody`"
        .into())
}

fn id(what: &str, user: Option<&str>) -> Result<u32, String> {
    let told = Command::new("id").arg(what).args(user).output().map_err(|error| format!("id: {error}"))?;
    String::from_utf8_lossy(&told.stdout).trim().parse().map_err(|_| format!("id {what} tells no number"))
}

/// The directory of the newest binaries.
fn find_binaries() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>();
    let mut elsewhere: Vec<PathBuf> = Vec::new();
    for place in PLACES {
        let versions = fs::read_dir(place).into_iter().flatten().filter_map(Result::ok);
        elsewhere.extend(versions.map(|version| version.path().join("bin")));
        elsewhere.push(Path::new(place).join("bin"));
    }
    elsewhere.sort_by_key(|directory| std::cmp::Reverse(number_in(directory)));
    let has_both =
        |directory: &&PathBuf| ["postgres", "initdb"].iter().all(|name| directory.join(name).is_file());
    let found = on_path.iter().chain(&elsewhere).find(has_both)?;
    // The binaries on the path may be links to some of them, and the others are needed too.
    Some(fs::canonicalize(found.join("postgres")).ok()?.parent()?.to_owned())
}

/// The version in a path such as `/usr/lib/postgresql/15/bin`, as a number, so that 9 sorts before
/// 15.
fn number_in(path: &Path) -> u32 {
    let digits = |part: &str| part.chars().filter(char::is_ascii_digit).collect::<String>().parse().ok();
    path.components().filter_map(|part| digits(part.as_os_str().to_str()?)).max().unwrap_or(0)
}

fn version(binaries: &Path) -> String {
    let told = Command::new(binaries.join("postgres")).arg("--version").output();
    told.map_or_else(|_| "PostgreSQL".into(), |told| String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_binaries_come_first() {
        assert!(
            number_in(Path::new("/usr/lib/postgresql/15/bin"))
                > number_in(Path::new("/usr/lib/postgresql/9/bin"))
        );
        assert_eq!(number_in(Path::new("/usr/local/bin")), 0);
    }
}
