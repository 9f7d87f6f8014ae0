//! PostgreSQL and MariaDB servers, each a process of its own, with settings that start fast but lose nothing.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::certificate::Certificate;
use crate::keeper::{Kept, as_user, temporary_folder};
use crate::wait::holds_within;

/// The user of every server; it may do everything.
pub const USER: &str = "eye";
/// The user's password: no log or error of the program may show it.
pub const PASSWORD: &str = "harness-secret";

/// How long a server may take to answer after its start, or to end when asked to.
const DEADLINE: Duration = Duration::from_secs(60);

/// Starts PostgreSQL.
#[derive(Debug)]
pub enum Postgres {}

/// Starts MariaDB.
#[derive(Debug)]
pub enum MariaDb {}

impl Postgres {
    /// A server of its own, for tests that stop or kill it. Blocks for about a second.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn start() -> Server {
        Self::start_with(&[])
    }

    /// A server with further arguments, each of which overrides what the harness says; `@` is the server's folder.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with(arguments: &[&str]) -> Server {
        Server::start(Engine::Postgres, arguments)
    }

    /// A server that offers TLS, with its own [`certificate`](Server::certificate).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with_tls() -> Server {
        Self::start_with(&["-c ssl=on -c ssl_cert_file=@/certificate.pem -c ssl_key_file=@/key.pem"])
    }

    /// The server that all tests of this process share; it is started by the first caller. Tests keep apart by
    /// [`Server::create_database`], and leave it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }
}

impl MariaDb {
    /// As [`Postgres::start`]. The server has MariaDB's own defaults (its character set is `latin1`, not Debian's
    /// `utf8mb4`): what the program needs, it must ask for.
    ///
    /// # Panics
    /// When MariaDB is not installed or does not start.
    pub fn start() -> Server {
        Self::start_with(&[])
    }

    /// As [`Postgres::start_with`].
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with(arguments: &[&str]) -> Server {
        Server::start(Engine::MariaDb, arguments)
    }

    /// As [`Postgres::start_with_tls`].
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with_tls() -> Server {
        Self::start_with(&["--ssl --ssl-cert=@/certificate.pem --ssl-key=@/key.pem"])
    }

    /// As [`Postgres::shared`].
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }
}

/// A database server on a port of 127.0.0.1. Dropping it kills it and removes what it stored.
///
/// All methods block; a test with work in the background runs on a multi-threaded runtime.
pub struct Server {
    engine: Engine,
    port: u16,
    process: Mutex<Kept>,
}

/// A database of its own on a server.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its name, for [`Server::sql`].
    pub name: String,
    /// Where the program finds it, with user and password.
    pub url: String,
}

impl Server {
    fn start(engine: Engine, arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = temporary_folder(engine.user());
        let mut command = engine.server_command(&folder, port);
        command.extend(arguments.iter().flat_map(|argument| words(argument, &folder)));
        let kept = Kept::new(&folder, Some(engine.user()), &command);
        engine.initialise(&folder);
        let server = Self { engine, port, process: Mutex::new(kept) };
        server.restart();
        server
    }

    /// The port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// The number of its main process, to look at it in `/proc`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> String {
        self.process().pid()
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        self.process().folder().to_owned()
    }

    /// What it shows its clients if it was started with TLS.
    pub fn certificate(&self) -> Certificate {
        Certificate::of(&self.folder())
    }

    /// Where the program finds `database`, with user and password.
    pub fn url(&self, database: &str) -> String {
        let scheme = match self.engine {
            Engine::Postgres => "postgres",
            Engine::MariaDb => "mysql",
        };
        format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database with a name that no other test has.
    ///
    /// # Panics
    /// When the server does not run.
    pub fn create_database(&self) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql(self.engine.default_database(), &format!("CREATE DATABASE {name}"));
        Database { url: self.url(&name), name }
    }

    /// Runs SQL by the database's own client and returns what it prints: a line a row, columns separated by tabs.
    ///
    /// # Panics
    /// With the client's message when a statement fails or the server does not run.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let output = self.client(database, sql);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?} refuses {sql:?}: {error}", self.engine);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Starts the server again, on the same port with what it had stored, and waits until it answers.
    ///
    /// # Panics
    /// With the server's log when it does not answer. It must have been stopped or killed.
    pub fn restart(&self) {
        let mut process = self.process();
        process.start();
        let answers = || self.client(self.engine.default_database(), "SELECT 1").status.success();
        holds_within(DEADLINE, || process.has_ended() || answers());
        assert!(!process.has_ended() && answers(), "{:?} does not start; its log:\n{}", self.engine, process.log());
    }

    /// Ends the server as its operator would, connections cut.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&self) {
        let signal = match self.engine {
            Engine::Postgres => "INT", // "fast": it does not wait for its clients to leave
            Engine::MariaDb => "TERM",
        };
        let code = self.process().terminate(signal, DEADLINE);
        assert_eq!(code, Some(0), "{:?} does not stop cleanly", self.engine);
    }

    /// Kills all processes of the server at once (SIGKILL) and waits until they are gone.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Freezes the server (SIGSTOP): it still accepts connections, but answers nobody.
    pub fn pause(&self) {
        self.process().pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.process().resume();
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.process().log()
    }

    fn client(&self, database: &str, sql: &str) -> Output {
        let mut command = self.engine.client(self.port);
        command.arg(database).current_dir("/");
        match self.engine {
            Engine::Postgres => command.args(["-c", sql]),
            Engine::MariaDb => command.args(["-e", sql]),
        };
        command.output().unwrap_or_else(|error| panic!("cannot run the client of {:?}: {error}", self.engine))
    }

    fn process(&self) -> MutexGuard<'_, Kept> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("engine", &self.engine).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Where the two differ.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Postgres,
    MariaDb,
}

impl Engine {
    /// The system's user that Debian's package made for the server.
    fn user(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mysql",
        }
    }

    fn default_database(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mysql",
        }
    }

    /// Makes the server's files, its user and its certificate.
    fn initialise(self, folder: &Path) {
        Certificate::make(folder);
        let (program, arguments) = match self {
            Self::Postgres => {
                write(&folder.join("password"), PASSWORD);
                let access = format!("-U {USER} -A scram-sha-256 --pwfile=@/password");
                ("initdb", format!("-D @/data {access} -E UTF8 --locale=C --no-sync"))
            }
            Self::MariaDb => {
                let user = format!("'{USER}'@'127.0.0.1'");
                let sql = format!(
                    "CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{PASSWORD}';\n\
                     GRANT ALL ON *.* TO {user} WITH GRANT OPTION;\n"
                );
                write(&folder.join("init.sql"), &sql);
                let access = "--skip-test-db --auth-root-authentication-method=normal";
                ("mariadb-install-db", format!("--no-defaults {MARIADB_SETTINGS} {access}"))
            }
        };
        let mut command = as_user(Some(self.user()), &self.program(program));
        let output = command.args(words(&arguments, folder)).current_dir("/").output().expect("the program was found");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{self:?} cannot make its files in {}:\n{said}", folder.display());
    }

    fn server_command(self, folder: &Path, port: u16) -> Vec<String> {
        let (program, arguments) = match self {
            Self::Postgres => {
                let network = format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=");
                // Shared memory below the folder, not in /dev/shm, where a killed server leaves it.
                let files = "-D @/data -c dynamic_shared_memory_type=mmap";
                // Where much runs at once, the tests themselves may be slow to shake hands.
                let clients = "-c max_connections=200 -c authentication_timeout=600";
                ("postgres", format!("{files} {network} {clients}"))
            }
            Self::MariaDb => {
                let network = format!("--bind-address=127.0.0.1 --port={port} --skip-name-resolve --socket=@/socket");
                let files = "--pid-file=@/pid --init-file=@/init.sql";
                // Newer servers make a certificate for themselves.
                let clients = "--max-connections=200 --connect-timeout=600 --skip-ssl";
                ("mariadbd", format!("--no-defaults {MARIADB_SETTINGS} {network} {files} {clients}"))
            }
        };
        let program = self.program(program).display().to_string();
        std::iter::once(program).chain(words(&arguments, folder)).collect()
    }

    /// The database's own client, ready to be given a database and a statement.
    fn client(self, port: u16) -> Command {
        let port = port.to_string();
        match self {
            Self::Postgres => {
                let mut command = Command::new(self.program("psql"));
                command.args(["-XAtqw", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port]);
                command.args(["-U", USER]).env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "5");
                command
            }
            Self::MariaDb => {
                let mut command = Command::new(self.program("mariadb"));
                command.args(["--no-defaults", "--skip-ssl", "-NBr", "-h", "127.0.0.1", "-P", &port, "-u", USER]);
                command.args(["--default-character-set=utf8mb4", "--connect-timeout=5"]).env("MYSQL_PWD", PASSWORD);
                command
            }
        }
    }

    /// Finds a program in PATH, or where Debian hides it.
    fn program(self, name: &str) -> PathBuf {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        folders.extend(versions.map(|version| version.path().join("bin")));
        let package = match self {
            Self::Postgres => "postgresql",
            Self::MariaDb => "mariadb-server",
        };
        folders.into_iter().map(|folder| folder.join(name)).find(|program| program.is_file()).unwrap_or_else(|| {
            panic!("{name} is missing: ./scripts/test installs what the tests need (Debian's package {package})")
        })
    }
}

/// What counts when the files are made as well as when they are used. In a temporary folder that they share, servers
/// that run at once remove each other's tables.
const MARIADB_SETTINGS: &str = "--datadir=@/data --tmpdir=@ --innodb-log-file-size=32M --innodb-buffer-pool-size=64M";

/// The words of a command line, with the folder for each `@`.
fn words(line: &str, folder: &Path) -> Vec<String> {
    line.split(' ').map(|word| word.replace('@', &folder.display().to_string())).collect()
}

fn write(file: &Path, content: &str) {
    fs::write(file, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    // Written by root, read by the server.
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap_or_else(|error| panic!("cannot set the rights of {}: {error}", file.display()));
}

/// A port that nobody listens on, from below the range that the system hands out by itself: while a server is down,
/// nobody gets its port by chance.
pub(crate) fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let spread = std::process::id().wrapping_mul(37) as u16; // test processes that run together start apart
    (0..1000)
        .map(|_| spread.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)))
        .map(|number| PORTS.start + number % (PORTS.end - PORTS.start))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("one of 1000 ports is free")
}
