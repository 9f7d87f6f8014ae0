//! PostgreSQL and MariaDB servers for tests.
//!
//! Each [`DatabaseServer`] is a process of its own with durable settings that start fast. [`Postgres`] and [`MariaDb`]
//! start one; tests that do not stop their server use the shared one and create a database of their own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::certificate::Certificate;
use crate::process_guard::{GuardedProcess, as_user, find_program, temporary_folder};
use crate::wait::holds_within;

/// The user name on every server, with all privileges.
pub const USER: &str = "eye";
/// The password of [`USER`]. No log and no error of the program may show it.
pub const PASSWORD: &str = "harness-secret";

/// The time limit for a server to answer after its start, or to end after a signal.
const DEADLINE: Duration = Duration::from_secs(60);

/// Constructors of PostgreSQL servers.
#[derive(Debug)]
pub enum Postgres {}

/// Constructors of MariaDB servers.
#[derive(Debug)]
pub enum MariaDb {}

impl Postgres {
    /// Starts a server for one test, which may stop or kill it. Blocks for about a second.
    ///
    /// # Panics
    /// Panics if PostgreSQL is not installed or does not start.
    pub fn start() -> DatabaseServer {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments, which override those of the harness. `@` stands for the server's folder.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_with(arguments: &[&str]) -> DatabaseServer {
        DatabaseServer::start(Engine::Postgres, arguments)
    }

    /// Starts a server that offers TLS with its own [`certificate`](DatabaseServer::certificate).
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_with_tls() -> DatabaseServer {
        Self::start_with(&["-c ssl=on -c ssl_cert_file=@/certificate.pem -c ssl_key_file=@/key.pem"])
    }

    /// Returns the server that all tests of this process share. The first call starts it. Each test creates its own
    /// database ([`DatabaseServer::create_database`]) and leaves the server running.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn shared() -> &'static DatabaseServer {
        static SHARED: OnceLock<DatabaseServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }
}

impl MariaDb {
    /// Starts a server as [`Postgres::start`] does. It has MariaDB's own defaults, such as the character set `latin1`
    /// instead of Debian's `utf8mb4`, so that the program must set everything that it needs.
    ///
    /// # Panics
    /// Panics if MariaDB is not installed or does not start.
    pub fn start() -> DatabaseServer {
        Self::start_with(&[])
    }

    /// Starts a server as [`Postgres::start_with`] does.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_with(arguments: &[&str]) -> DatabaseServer {
        DatabaseServer::start(Engine::MariaDb, arguments)
    }

    /// Starts a server as [`Postgres::start_with_tls`] does.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_with_tls() -> DatabaseServer {
        Self::start_with(&["--ssl --ssl-cert=@/certificate.pem --ssl-key=@/key.pem"])
    }

    /// Returns the shared server, as [`Postgres::shared`] does.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn shared() -> &'static DatabaseServer {
        static SHARED: OnceLock<DatabaseServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }
}

/// A database server on a port of 127.0.0.1. Dropping it kills the server and removes its files.
///
/// All methods block, so a test with background tasks needs a multi-threaded runtime.
pub struct DatabaseServer {
    engine: Engine,
    port: u16,
    process: Mutex<GuardedProcess>,
}

/// A database on a server.
#[derive(Clone, Debug)]
pub struct Database {
    /// The name, for [`DatabaseServer::sql`].
    pub name: String,
    /// The URL for the program, with user and password.
    pub url: String,
}

impl DatabaseServer {
    fn start(engine: Engine, arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = temporary_folder(engine.user());
        let mut command = engine.server_command(&folder, port);
        command.extend(arguments.iter().flat_map(|argument| split_arguments(argument, &folder)));
        let process = GuardedProcess::new(&folder, Some(engine.user()), &command);
        engine.initialise(&folder);
        let server = Self { engine, port, process: Mutex::new(process) };
        server.restart();
        server
    }

    /// Returns the port on 127.0.0.1, which a restart does not change.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// Returns the ID of its main process, for `/proc`.
    ///
    /// # Panics
    /// Panics if the server does not run.
    pub fn pid(&self) -> String {
        self.process().pid()
    }

    /// Returns the folder with its files.
    pub fn folder(&self) -> PathBuf {
        self.process().folder().to_owned()
    }

    /// Returns the certificate of a server that was started with TLS.
    pub fn certificate(&self) -> Certificate {
        Certificate::in_folder(&self.folder())
    }

    /// Returns the URL of `database` for the program, with user and password.
    pub fn url(&self, database: &str) -> String {
        let scheme = match self.engine {
            Engine::Postgres => "postgres",
            Engine::MariaDb => "mysql",
        };
        format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates an empty database with a unique name.
    ///
    /// # Panics
    /// Panics if the server does not run.
    pub fn create_database(&self) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql(self.engine.default_database(), &format!("CREATE DATABASE {name}"));
        Database { url: self.url(&name), name }
    }

    /// Runs SQL through the database's own client and returns its output: one line per row, columns separated by tabs.
    ///
    /// # Panics
    /// Panics with the client's message if a statement fails or the server does not run.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let output = self.client(database, sql);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?} rejects {sql:?}: {error}", self.engine);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Starts the server again after a stop or a kill, on the same port with the same files, and waits until it
    /// answers.
    ///
    /// # Panics
    /// Panics with the server's log if it does not answer, or if it runs already.
    pub fn restart(&self) {
        let mut process = self.process();
        process.start();
        let answers = || self.client(self.engine.default_database(), "SELECT 1").status.success();
        holds_within(DEADLINE, || process.has_ended() || answers());
        assert!(!process.has_ended() && answers(), "{:?} does not start; its log:\n{}", self.engine, process.log());
    }

    /// Stops the server as an operator does, and closes its connections.
    ///
    /// # Panics
    /// Panics if the server does not end cleanly.
    pub fn stop(&self) {
        let signal = match self.engine {
            Engine::Postgres => "INT", // A fast shutdown: it does not wait for clients.
            Engine::MariaDb => "TERM",
        };
        let code = self.process().terminate(signal, DEADLINE);
        assert_eq!(code, Some(0), "{:?} does not stop cleanly", self.engine);
    }

    /// Kills all processes of the server (SIGKILL) and waits for their end.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Freezes the server (SIGSTOP). The system still accepts connections, but the server does not answer.
    pub fn pause(&self) {
        self.process().pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Returns the log of the server since its first start.
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

    fn process(&self) -> MutexGuard<'_, GuardedProcess> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for DatabaseServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseServer").field("engine", &self.engine).field("port", &self.port).finish_non_exhaustive()
    }
}

/// The database product, with all differences between the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Postgres,
    MariaDb,
}

impl Engine {
    /// Returns the system user that Debian's package creates for the server.
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

    /// Creates the server's files, its user and its certificate.
    fn initialise(self, folder: &Path) {
        Certificate::create(folder);
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
        let output =
            command.args(split_arguments(&arguments, folder)).current_dir("/").output().expect("the program was found");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{self:?} cannot create its files in {}:\n{text}", folder.display());
    }

    fn server_command(self, folder: &Path, port: u16) -> Vec<String> {
        let (program, arguments) = match self {
            Self::Postgres => {
                let network = format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=");
                // Shared memory in the folder. A killed server would leave it in /dev/shm.
                let files = "-D @/data -c dynamic_shared_memory_type=mmap";
                // On a busy machine, tests may be slow to complete the handshake.
                let clients = "-c max_connections=200 -c authentication_timeout=600";
                ("postgres", format!("{files} {network} {clients}"))
            }
            Self::MariaDb => {
                let network = format!("--bind-address=127.0.0.1 --port={port} --skip-name-resolve --socket=@/socket");
                let files = "--pid-file=@/pid --init-file=@/init.sql";
                // Newer servers create a certificate of their own.
                let clients = "--max-connections=200 --connect-timeout=600 --skip-ssl";
                ("mariadbd", format!("--no-defaults {MARIADB_SETTINGS} {network} {files} {clients}"))
            }
        };
        let program = self.program(program).display().to_string();
        std::iter::once(program).chain(split_arguments(&arguments, folder)).collect()
    }

    /// Returns the command of the database's own client, without database and statement.
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

    fn program(self, name: &str) -> PathBuf {
        find_program(
            name,
            match self {
                Self::Postgres => "postgresql",
                Self::MariaDb => "mariadb-server",
            },
        )
    }
}

/// Settings for both the creation and the use of the files. Servers with one temporary folder remove each other's
/// tables.
const MARIADB_SETTINGS: &str = "--datadir=@/data --tmpdir=@ --innodb-log-file-size=32M --innodb-buffer-pool-size=64M";

/// Splits arguments at spaces and puts the folder in place of each `@`.
fn split_arguments(line: &str, folder: &Path) -> Vec<String> {
    line.split(' ').map(|argument| argument.replace('@', &folder.display().to_string())).collect()
}

fn write(file: &Path, content: &str) {
    fs::write(file, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    // Root writes the file, the server reads it.
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap_or_else(|error| panic!("cannot set the permissions of {}: {error}", file.display()));
}

/// Returns a free port below the range of ephemeral ports, so that no other process gets it while a server is down.
pub(crate) fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let spread = std::process::id().wrapping_mul(37) as u16; // Concurrent test processes start at different ports.
    (0..1000)
        .map(|_| spread.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)))
        .map(|number| PORTS.start + number % (PORTS.end - PORTS.start))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("one of 1000 ports is free")
}
