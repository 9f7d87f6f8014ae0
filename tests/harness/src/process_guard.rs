//! Processes that end with the test process, even if that is killed and drops nothing.
//!
//! A small shell, the guard, starts each process and reads commands from a pipe. Only the test process holds the other
//! end of the pipe. When the pipe closes, the guard kills the process and removes its folder. [`GuardedProcess`] is the
//! type to read.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::wait::holds_within;

/// The time limit for a process to end or to freeze after a signal.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

const SCRIPT: &str = include_str!("process_guard.sh");

/// A process and its folder, both removed with the test process.
#[derive(Debug)]
pub struct GuardedProcess {
    guard: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    process: Option<Pid>,
}

impl GuardedProcess {
    /// Creates `folder`, which must not exist, and prepares `command`, which [`start`](Self::start) runs in it. Both
    /// belong to `user` if this process is root. At the end, the file system at `disk` in the folder is unmounted.
    ///
    /// # Panics
    /// Panics if the folder cannot be created.
    pub fn new(folder: &Path, user: Option<&str>, command: &[String]) -> Self {
        let mut guard = as_user(user, Path::new("sh"))
            .args(["-c", SCRIPT, "guard"])
            .arg(folder)
            .args(command)
            .current_dir("/")
            // Ctrl-C in the terminal must end the tests alone: the guard still has to clean up.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell can be started");
        let commands = guard.stdin.take();
        let answers = BufReader::new(guard.stdout.take().expect("stdout is piped"));
        let mut guarded = Self { guard, commands, answers, folder: folder.to_owned(), process: None };
        assert_eq!(guarded.answer().as_deref(), Some("ready"), "cannot create the folder {}", folder.display());
        guarded
    }

    /// Returns the folder of [`new`](Self::new).
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the command.
    ///
    /// # Panics
    /// Panics if the process runs already, or if nobody read the exit code of its last run.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "the process was started already");
        self.process = Some(Pid(self.command("start")));
    }

    /// Returns the process ID.
    ///
    /// # Panics
    /// Panics if the process was not started.
    pub fn pid(&self) -> String {
        self.process.as_ref().expect("the process was started").0.clone()
    }

    /// Returns true if the process does not run.
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_none_or(Pid::has_ended)
    }

    /// Sends `signal`, then waits as [`wait`](Self::wait) does.
    pub fn terminate(&mut self, signal: &str, deadline: Duration) -> Option<i32> {
        if !self.has_ended() {
            self.command(&format!("signal {signal}"));
        }
        self.wait(deadline)
    }

    /// Waits for the end of the process and returns its exit code: 128 + N after signal N, `None` if it still runs at
    /// the deadline.
    ///
    /// # Panics
    /// Panics if the process was not started, or if its exit code was read already.
    pub fn wait(&mut self, deadline: Duration) -> Option<i32> {
        assert!(self.process.is_some(), "the process was not started, or its exit code was read already");
        holds_within(deadline, || self.has_ended()).then(|| {
            self.process = None;
            self.command("reap").parse().expect("the shell answers with an exit code")
        })
    }

    /// Kills the process and its children, and waits for their end.
    ///
    /// # Panics
    /// Panics as [`wait`](Self::wait) does.
    pub fn kill(&mut self) {
        if !self.has_ended() {
            let processes = self.signal_all("KILL");
            let ended = holds_within(SIGNAL_DEADLINE, || processes.iter().all(Pid::has_ended));
            assert!(ended, "a killed process of {} does not end", self.folder.display());
        }
        self.wait(SIGNAL_DEADLINE);
    }

    /// Freezes the process and its children, and waits until all their threads have stopped.
    ///
    /// # Panics
    /// Panics if the process does not run.
    pub fn pause(&mut self) {
        assert!(!self.has_ended(), "the process does not run");
        let processes = self.signal_all("STOP");
        let frozen = holds_within(SIGNAL_DEADLINE, || processes.iter().all(Pid::is_frozen));
        assert!(frozen, "a process of {} runs after SIGSTOP", self.folder.display());
    }

    /// Ends a [`pause`](Self::pause).
    ///
    /// # Panics
    /// Panics if the process does not run.
    pub fn resume(&mut self) {
        assert!(!self.has_ended(), "the process does not run");
        self.signal_all("CONT");
    }

    /// Returns the output on stdout and stderr over all starts.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal to the process and its children, and returns them.
    fn signal_all(&mut self, signal: &str) -> Vec<Pid> {
        let processes = self.command(&format!("signal_all {signal}"));
        processes.split_whitespace().map(|pid| Pid(pid.to_owned())).collect()
    }

    fn command(&mut self, command: &str) -> String {
        let commands = self.commands.as_mut().expect("the pipe is open until the drop");
        writeln!(commands, "{command}").expect("the guard reads until the drop");
        self.answer().unwrap_or_else(|| panic!("the guard of {} has ended", self.folder.display()))
    }

    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).expect("a pipe can be read");
        (read > 0).then(|| line.trim().to_owned())
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        drop(self.commands.take());
        // The guard kills the process and removes the folder without waiting for anything.
        drop(self.guard.wait());
    }
}

/// Returns a unique path for a temporary folder. The count distinguishes threads, the time distinguishes folders that
/// an earlier test left behind.
pub fn temporary_folder(kind: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
    std::env::temp_dir().join(format!("eye-{kind}-{}-{count}-{}", std::process::id(), now.as_nanos()))
}

/// A process ID.
#[derive(Debug)]
struct Pid(String);

impl Pid {
    /// Returns true if the process has ended. A zombie has ended.
    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        has_state(&stat, &['Z', 'X'])
    }

    /// Returns true if all threads of the process have stopped or ended. The signal reaches them one after the other.
    fn is_frozen(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        let mut stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
        stats.all(|stat| has_state(&stat, &['T', 'Z', 'X']))
    }
}

/// Returns true if a `stat` of `/proc` shows one of these states. A process or thread without a `stat` has ended.
fn has_state(stat: &str, states: &[char]) -> bool {
    // `PID (NAME) STATE …`, and the name may contain anything.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(states))
}

/// Returns a command that runs as `user` if this process is root. The database servers refuse to run as root.
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

/// Finds a program in PATH or in the folders outside PATH that Debian uses for servers.
///
/// # Panics
/// Panics with the name of Debian's package if the program is not installed.
pub(crate) fn find_program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    folders.extend(versions.map(|version| version.path().join("bin")));
    folders.into_iter().map(|folder| folder.join(name)).find(|program| program.is_file()).unwrap_or_else(|| {
        panic!("{name} is not installed. Run ./scripts/test, which installs it, or install Debian's package {package}")
    })
}
