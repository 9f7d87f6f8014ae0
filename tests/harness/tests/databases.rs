//! The database servers start, stop, come back and leave nothing behind.

use std::time::Duration;

use eye_harness::{MariaDb, Postgres, Server};

fn keeps_data_over(server: &Server, end: impl Fn(&Server)) {
    let database = server.create_database();
    server.sql(&database.name, "CREATE TABLE kept (word VARCHAR(10))");
    server.sql(&database.name, "INSERT INTO kept VALUES ('still'), ('here')");
    let port = server.port();
    end(server);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "it should be down");
    server.restart();
    assert_eq!(server.port(), port);
    assert_eq!(server.sql(&database.name, "SELECT word FROM kept ORDER BY word"), "here\nstill");
}

#[test]
fn postgres_keeps_its_data_over_a_kill() {
    keeps_data_over(&Postgres::start(), Server::kill);
}

#[test]
fn postgres_keeps_its_data_over_a_stop() {
    keeps_data_over(&Postgres::start(), Server::stop);
}

#[test]
fn mariadb_keeps_its_data_over_a_kill() {
    keeps_data_over(&MariaDb::start(), Server::kill);
}

#[test]
fn mariadb_keeps_its_data_over_a_stop() {
    keeps_data_over(&MariaDb::start(), Server::stop);
}

#[test]
fn a_paused_server_answers_when_it_is_resumed() {
    for server in [Postgres::start(), MariaDb::start()] {
        let database = server.create_database();
        server.pause();
        let (name, sent) = (&database.name, std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| sent.0.send(server.sql(name, "SELECT 1")));
            assert!(sent.1.recv_timeout(Duration::from_millis(300)).is_err(), "it should be frozen");
            server.resume();
            assert_eq!(sent.1.recv_timeout(Duration::from_secs(30)).as_deref(), Ok("1"));
        });
    }
}

#[test]
fn databases_of_one_server_are_apart() {
    for server in [Postgres::shared(), MariaDb::shared()] {
        let [first, second] = [server.create_database(), server.create_database()];
        server.sql(&first.name, "CREATE TABLE mine (n INT)");
        server.sql(&second.name, "CREATE TABLE mine (n INT)");
        assert_ne!(first.url, second.url);
    }
}

#[test]
#[should_panic(expected = "relation \"nothing\" does not exist")]
fn sql_that_fails_panics_with_the_message() {
    Postgres::shared().sql("postgres", "SELECT * FROM nothing");
}
