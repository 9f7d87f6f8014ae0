//! Database servers: start, stop, restart, and separation of databases.

use std::time::Duration;

use eye_harness::{DatabaseServer, MariaDb, Postgres};

fn assert_data_survives(server: &DatabaseServer, end: impl Fn(&DatabaseServer)) {
    let database = server.create_database();
    server.sql(&database.name, "CREATE TABLE kept (text VARCHAR(10))");
    server.sql(&database.name, "INSERT INTO kept VALUES ('still'), ('here')");
    let port = server.port();
    end(server);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "the server has ended");
    server.restart();
    assert_eq!(server.port(), port);
    assert_eq!(server.sql(&database.name, "SELECT text FROM kept ORDER BY text"), "here\nstill");
}

#[test]
fn postgres_data_survives_a_kill() {
    assert_data_survives(&Postgres::start(), DatabaseServer::kill);
}

#[test]
fn postgres_data_survives_a_stop() {
    assert_data_survives(&Postgres::start(), DatabaseServer::stop);
}

#[test]
fn mariadb_data_survives_a_kill() {
    assert_data_survives(&MariaDb::start(), DatabaseServer::kill);
}

#[test]
fn mariadb_data_survives_a_stop() {
    assert_data_survives(&MariaDb::start(), DatabaseServer::stop);
}

#[test]
fn paused_server_answers_after_resume() {
    for server in [Postgres::start(), MariaDb::start()] {
        let database = server.create_database();
        server.pause();
        let (name, sent) = (&database.name, std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| sent.0.send(server.sql(name, "SELECT 1")));
            assert!(sent.1.recv_timeout(Duration::from_millis(300)).is_err(), "a paused server does not answer");
            server.resume();
            assert_eq!(sent.1.recv_timeout(Duration::from_secs(30)).as_deref(), Ok("1"));
        });
    }
}

#[test]
fn databases_of_one_server_are_separate() {
    for server in [Postgres::shared(), MariaDb::shared()] {
        let [first, second] = [server.create_database(), server.create_database()];
        server.sql(&first.name, "CREATE TABLE mine (n INT)");
        server.sql(&second.name, "CREATE TABLE mine (n INT)");
        assert_ne!(first.url, second.url);
    }
}

#[test]
#[should_panic(expected = "relation \"nothing\" does not exist")]
fn failed_sql_panics_with_the_message() {
    Postgres::shared().sql("postgres", "SELECT * FROM nothing");
}
