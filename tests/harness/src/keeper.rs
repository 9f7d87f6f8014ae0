//! A process that dies with the test process, even when that is killed and nothing is dropped.
//!
//! Each server runs below a small shell, the keeper, which reads from a pipe that only the test process holds open. At
//! the end of that pipe it kills the server and removes its folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::wait::holds_within;

/// How long a process may take to end or to stand still once it got the signal.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

const SCRIPT: &str = include_str!("keeper.sh");

/// A server process, with its folder.
#[derive(Debug)]
pub struct Kept {
    keeper: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    server: Option<Pid>,
}

impl Kept {
    /// Makes `folder`, which must not exist yet, as the user `user` when root; `command` is what [`start`](Self::start)
    /// will run in it. What is mounted at `disk` in it is unmounted at the end.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn new(folder: &Path, user: Option<&str>, command: &[String]) -> Self {
        let mut keeper = as_user(user, Path::new("sh"))
            .args(["-c", SCRIPT, "keeper"])
            .arg(folder)
            .args(command)
            .current_dir("/")
            // Apart from the terminal's group: Ctrl-C ends the tests, and then the keeper has work to do.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell can be started");
        let orders = keeper.stdin.take();
        let answers = BufReader::new(keeper.stdout.take().expect("stdout is piped"));
        let mut kept = Self { keeper, orders, answers, folder: folder.to_owned(), server: None };
        assert_eq!(kept.answer().as_deref(), Some("ready"), "cannot make the folder {}", folder.display());
        kept
    }

    /// What was given to [`new`](Self::new).
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the command.
    ///
    /// # Panics
    /// When it runs already, or has ended and nobody asked for its exit code.
    pub fn start(&mut self) {
        assert!(self.server.is_none(), "it was started already");
        self.server = Some(Pid(self.order("start")));
    }

    /// The number of the server's process.
    ///
    /// # Panics
    /// When it was not started.
    pub fn pid(&self) -> String {
        self.server.as_ref().expect("it was started").0.clone()
    }

    /// Whether it does not run.
    pub fn has_ended(&self) -> bool {
        self.server.as_ref().is_none_or(Pid::has_ended)
    }

    /// Asks the server to end by the signal `signal`; otherwise as [`wait`](Self::wait).
    pub fn terminate(&mut self, signal: &str, deadline: Duration) -> Option<i32> {
        if !self.has_ended() {
            self.order(&format!("ask {signal}"));
        }
        self.wait(deadline)
    }

    /// Waits until the server has ended. Its exit code (128 + N when a signal N ended it), or `None` when it still runs
    /// at the deadline.
    ///
    /// # Panics
    /// When it was not started, or its exit code was asked for already.
    pub fn wait(&mut self, deadline: Duration) -> Option<i32> {
        assert!(self.server.is_some(), "it was not started, or is known to have ended");
        holds_within(deadline, || self.has_ended()).then(|| {
            self.server = None;
            self.order("reap").parse().expect("the shell answers with an exit code")
        })
    }

    /// Kills every process of the server and waits until none is left.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    pub fn kill(&mut self) {
        if !self.has_ended() {
            let processes = self.force("KILL");
            let ended = holds_within(SIGNAL_DEADLINE, || processes.iter().all(Pid::has_ended));
            assert!(ended, "a killed process of {} does not end", self.folder.display());
        }
        self.wait(SIGNAL_DEADLINE);
    }

    /// Freezes every process of the server and waits until each of their threads stands still.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pause(&mut self) {
        assert!(!self.has_ended(), "it does not run");
        let processes = self.force("STOP");
        let stand_still = holds_within(SIGNAL_DEADLINE, || processes.iter().all(Pid::stands_still));
        assert!(stand_still, "a process of {} that was stopped goes on", self.folder.display());
    }

    /// Ends a [`pause`](Self::pause).
    ///
    /// # Panics
    /// As `pause`.
    pub fn resume(&mut self) {
        assert!(!self.has_ended(), "it does not run");
        self.force("CONT");
    }

    /// What the server has written to stdout and stderr, over all its starts.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal to every process of the server: these.
    fn force(&mut self, signal: &str) -> Vec<Pid> {
        let processes = self.order(&format!("force {signal}"));
        processes.split_whitespace().map(|pid| Pid(pid.to_owned())).collect()
    }

    fn order(&mut self, order: &str) -> String {
        let orders = self.orders.as_mut().expect("open until the drop");
        writeln!(orders, "{order}").expect("the keeper reads until the drop");
        self.answer().unwrap_or_else(|| panic!("the keeper of {} is gone", self.folder.display()))
    }

    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).expect("a pipe can be read");
        (read > 0).then(|| line.trim().to_owned())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It kills and removes, neither waits for anybody.
        drop(self.keeper.wait());
    }
}

/// A name for a folder that nothing has had before: not another thread, which the count tells apart, and not a test that
/// a power cut kept from tidying up.
pub fn temporary_folder(kind: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
    std::env::temp_dir().join(format!("eye-{kind}-{}-{count}-{}", std::process::id(), now.as_nanos()))
}

/// A process by its number.
#[derive(Debug)]
struct Pid(String);

impl Pid {
    /// Whether it has ended; one that its parent has not yet asked for its exit code (a zombie) has.
    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        has_state(&stat, &['Z', 'X'])
    }

    /// Whether it has stopped or ended, with all its threads: the signal reaches them one after the other.
    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        let mut stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
        stats.all(|stat| has_state(&stat, &['T', 'Z', 'X']))
    }
}

/// Whether a `stat` of `/proc` shows one of these states. A process or thread without one is gone.
fn has_state(stat: &str, states: &[char]) -> bool {
    // `PID (NAME) STATE …`, and the name may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(states))
}

/// A command that runs as `user` when this process is root, which the database servers refuse to run as.
pub(crate) fn as_user(user: Option<&str>, program: &Path) -> Command {
    match user {
        Some(user) if is_root() => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", user, "--init-groups", "--"]).arg(program);
            command
        }
        _ => Command::new(program),
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("Linux has /proc").uid() == 0
}
