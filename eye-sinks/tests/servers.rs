//! PostgreSQL and MariaDB beyond the conformance suites: startup, outages, secrets, limits.
#![allow(clippy::unwrap_used)]

mod common;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{at, build, event, matching, named, newest, open, page, parse};
use eye_core::sink::{SinkConfig, WriteError};
use eye_core::store::{EventFilter, EventQuery, PageStart, StoreError};
use eye_core::timestamp::Timestamp;
use eye_harness::{DatabaseServer, MariaDb, PASSWORD, Postgres, eventually};
use eye_sinks::{MysqlConfig, PostgresConfig};
use sqlx::{Connection, Executor, MySqlConnection, PgConnection};

/// Runs each case against both servers.
macro_rules! on_both {
    ($($case:ident)*) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case::<super::PostgresConfig>(super::POSTGRES).await;
            })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case::<super::MysqlConfig>(super::MARIADB).await;
            })*
        }
    };
}

on_both! {
    nodes_may_start_at_once
    schema_of_a_newer_version_is_rejected
    user_without_ddl_rights_suffices
    rejected_batch_stores_nothing_and_quotes_nothing
    half_stored_batch_has_duplicates_when_retried
    unclassified_error_keeps_the_connection
    dropped_table_is_recreated
    restart_of_the_server_costs_one_retry
    server_unavailable_at_startup_is_found_later
    hanging_server_is_a_retry_in_bounded_time
    wrong_password_is_a_retry_and_stays_secret
    password_may_have_any_characters
    required_tls_is_never_skipped
    tls_verifies_the_server
    hanging_tls_server_does_not_block_close
    debug_output_hides_the_password
    first_and_last_instant_are_stored
    filter_with_nul_finds_nothing
    cancelled_queries_leave_no_broken_connection
    locked_counts_delay_no_write
    page_reports_event_of_its_key
}

struct Servers {
    shared: fn() -> &'static DatabaseServer,
    own: fn() -> DatabaseServer,
    own_with_tls: fn() -> DatabaseServer,
}

const POSTGRES: Servers =
    Servers { shared: Postgres::shared, own: Postgres::start, own_with_tls: Postgres::start_with_tls };
const MARIADB: Servers =
    Servers { shared: MariaDb::shared, own: MariaDb::start, own_with_tls: MariaDb::start_with_tls };

fn is_postgres<C: SinkConfig>() -> bool {
    C::TYPE == "postgres"
}

#[track_caller]
fn reason(error: &WriteError) -> &str {
    let WriteError::Retry { reason, .. } = error else { panic!("no retry: {error:?}") };
    assert!(!reason.contains(PASSWORD), "{reason}");
    reason
}

async fn nodes_may_start_at_once<C: SinkConfig>(servers: Servers) {
    let database = (servers.shared)().create_database();
    let mut nodes = Vec::new();
    for number in 0..8 {
        let sink = build::<C>(&database.url).await;
        nodes.push(tokio::spawn(async move {
            sink.prepare().await.unwrap();
            sink.write(&[event(number)]).await.unwrap();
        }));
    }
    for node in nodes {
        node.await.unwrap();
    }
    assert_eq!(newest(&open::<C>(&database.url).await, 100).await.count, 8);
}

async fn schema_of_a_newer_version_is_rejected<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    open::<C>(&database.url).await.close().await.unwrap();
    server.sql(&database.name, "INSERT INTO eye_migration (version, applied_at) VALUES ('m9999_future', 0)");
    let error = build::<C>(&database.url).await.prepare().await.unwrap_err();
    let WriteError::Reject { reason } = error else { panic!("{error:?}") };
    assert!(reason.contains("newer version of The Eye") && reason.contains("m9999_future"), "{reason}");
}

const COUNTS_RIGHTS: &str = "GRANT INSERT, UPDATE, DELETE ON";

async fn user_without_ddl_rights_suffices<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    open::<C>(&database.url).await;
    let name = format!("writer_{}", database.name);
    server.sql(
        &database.name,
        &match is_postgres::<C>() {
            true => format!(
                "CREATE USER {name} PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name};
                GRANT INSERT ON event TO {name}; {COUNTS_RIGHTS} event_count TO {name};
                {COUNTS_RIGHTS} event_count_delta TO {name}"
            ),
            false => format!(
                "CREATE USER {name} IDENTIFIED BY 'x'; GRANT SELECT ON {}.* TO {name};
                GRANT INSERT ON event TO {name}; {COUNTS_RIGHTS} event_count TO {name};
                {COUNTS_RIGHTS} event_count_delta TO {name}",
                database.name
            ),
        },
    );
    let sink = open::<C>(&database.url.replace(&format!("eye:{PASSWORD}"), &format!("{name}:x"))).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
    eventually("counts are folded", Duration::from_secs(30), async || {
        sink.prepare().await.unwrap();
        server.sql(&database.name, "SELECT COUNT(*) FROM event_count_delta") == "0"
    })
    .await;
}

async fn rejected_batch_stores_nothing_and_quotes_nothing<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    let sink = open::<C>(&database.url).await;
    server.sql(&database.name, "ALTER TABLE event ADD CONSTRAINT no_secrets CHECK (name <> 'bad')");
    let error = sink.write(&[event(1), named(2, "bad", "\"private\"")]).await.unwrap_err();
    let WriteError::Reject { reason } = &error else { panic!("{error:?}") };
    assert!(reason.contains("no_secrets") && !reason.contains("private") && !reason.contains("127.0.0.1"), "{reason}");
    assert_eq!(newest(&sink, 10).await.count, 0);
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
}

async fn half_stored_batch_has_duplicates_when_retried<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    let sink = open::<C>(&database.url).await;
    server.sql(&database.name, "ALTER TABLE event ADD CONSTRAINT good CHECK (name <> 'bad')");
    let mut batch: Vec<_> = (0..999).map(event).collect();
    batch.push(named(999, "bad", "{}"));
    let error = sink.write(&batch).await.unwrap_err();
    assert!(matches!(error, WriteError::Reject { .. }), "{error:?}");
    assert_eq!(newest(&sink, 1).await.count, 500, "the half without it, and all of that");
    batch.pop();
    assert_eq!(sink.write(&batch).await.unwrap().duplicates, 500);
    assert_eq!(newest(&sink, 1).await.count, 999);
}

async fn unclassified_error_keeps_the_connection<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    let sink = open::<C>(&database.url).await;
    sink.write(&[event(1)]).await.unwrap();
    let (triggers, connections) = match is_postgres::<C>() {
        true => (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'odd' USING ERRCODE = 'EY001'; END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON event FOR EACH ROW WHEN (NEW.name = 'bad') EXECUTE FUNCTION refuse()",
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
            ORDER BY pid",
        ),
        false => (
            "CREATE TRIGGER refuse BEFORE INSERT ON event FOR EACH ROW
            SET @unused = IF(NEW.name = 'bad', (SELECT 1 UNION SELECT 2), 0)",
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()
            ORDER BY id",
        ),
    };
    server.sql(&database.name, triggers);
    let all = async || server.sql(&database.name, connections);
    eventually("one connection writes, one folds", Duration::from_secs(30), async || all().await.lines().count() == 2)
        .await;
    let before = all().await;
    let error = sink.write(&[event(2), named(3, "bad", "1")]).await.unwrap_err();
    assert!(matches!(error, WriteError::Unknown { .. }), "{error:?}");
    sink.write(&[event(4)]).await.unwrap();
    assert_eq!(all().await, before);
    assert_eq!(newest(&sink, 10).await.count, 2);
}

async fn dropped_table_is_recreated<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    let sink = open::<C>(&database.url).await;
    sink.write(&[event(0)]).await.unwrap();
    server.sql(&database.name, "DROP TABLE event");
    server.sql(&database.name, "DROP TABLE eye_migration");
    reason(&sink.write(&[event(1)]).await.unwrap_err());
    let answer = sink.store().page(EventQuery { limit: 10, ..EventQuery::default() }).await;
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    sink.prepare().await.unwrap();
    sink.write(&[event(1)]).await.unwrap();
}

async fn restart_of_the_server_costs_one_retry<C: SinkConfig>(servers: Servers) {
    let server = (servers.own)();
    let database = server.create_database();
    let sink = Arc::new(open::<C>(&database.url).await);
    // Leaves several stale connections of each kind.
    let mut work = Vec::new();
    for number in 0..8 {
        let sink = Arc::clone(&sink);
        work.push(tokio::spawn(async move {
            sink.write(&[event(number)]).await.unwrap();
            newest(&sink, 10).await;
        }));
    }
    for task in work {
        task.await.unwrap();
    }
    server.kill();
    server.restart();
    assert_eq!(newest(&sink, 10).await.count, 8);
    reason(&sink.write(&[event(8)]).await.unwrap_err());
    sink.write(&[event(8)]).await.unwrap();
    server.kill();
    server.restart();
    sink.prepare().await.unwrap();
    sink.write(&[event(9)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.count, 10);
}

async fn server_unavailable_at_startup_is_found_later<C: SinkConfig>(servers: Servers) {
    let server = (servers.own)();
    let database = server.create_database();
    server.stop();
    let sink = build::<C>(&database.url).await;
    let error = sink.prepare().await.unwrap_err();
    let place = format!("127.0.0.1:{}/{}", server.port(), database.name);
    assert!(reason(&error).contains(&place) && reason(&error).contains("refused"), "{error}");
    let started = Instant::now();
    let answer = sink.store().page(EventQuery { limit: 10, ..EventQuery::default() }).await;
    let Err(StoreError::Unavailable { reason }) = answer else { panic!("{answer:?}") };
    assert!(started.elapsed() < Duration::from_secs(10) && !reason.contains(PASSWORD), "{reason}");
    server.restart();
    sink.prepare().await.unwrap();
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, [event(1)]);
}

async fn hanging_server_is_a_retry_in_bounded_time<C: SinkConfig>(servers: Servers) {
    let server = (servers.own)();
    let database = server.create_database();
    let sink = open::<C>(&database.url).await;
    server.pause();
    let started = Instant::now();
    let error = sink.prepare().await.unwrap_err();
    assert!(reason(&error).contains("longer than 5 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(15));
    server.resume();
    sink.prepare().await.unwrap();
    sink.write(&[event(1)]).await.unwrap();
}

async fn wrong_password_is_a_retry_and_stays_secret<C: SinkConfig>(servers: Servers) {
    let database = (servers.shared)().create_database();
    let sink = build::<C>(&database.url.replace(PASSWORD, "not-this-one")).await;
    let error = sink.prepare().await.unwrap_err();
    assert!(!reason(&error).contains("not-this-one"), "{error}");
    assert!(["password", "Access denied"].iter().any(|text| reason(&error).contains(text)), "{error}");
}

async fn password_may_have_any_characters<C: SinkConfig>(servers: Servers) {
    let server = (servers.shared)();
    let database = server.create_database();
    let name = format!("odd_{}", database.name);
    let password = "p@s/s?w#rd%:&ü";
    server.sql(
        &database.name,
        &match is_postgres::<C>() {
            true => format!("CREATE USER {name} SUPERUSER PASSWORD '{password}'"),
            false => format!("CREATE USER {name} IDENTIFIED BY '{password}'; GRANT ALL ON *.* TO {name}"),
        },
    );
    let encoded = "p%40s%2Fs%3Fw%23rd%25%3A%26%C3%BC";
    open::<C>(&database.url.replace(&format!("eye:{PASSWORD}"), &format!("{name}:{encoded}"))).await;
}

async fn required_tls_is_never_skipped<C: SinkConfig>(servers: Servers) {
    // The shared servers have no certificate.
    let mode = if is_postgres::<C>() { "sslmode=require" } else { "ssl-mode=REQUIRED" };
    let database = (servers.shared)().create_database();
    let error = build::<C>(&format!("{}?{mode}", database.url)).await.prepare().await.unwrap_err();
    assert!(reason(&error).contains("TLS"), "{error}");
}

async fn tls_verifies_the_server<C: SinkConfig>(servers: Servers) {
    let (server, other) = ((servers.own_with_tls)(), (servers.own_with_tls)());
    let database = server.create_database();
    let url = |meant: &DatabaseServer| {
        let certificate = meant.certificate().certificate;
        let parameters = match is_postgres::<C>() {
            true => "sslmode=verify-full&sslrootcert",
            false => "ssl-mode=VERIFY_IDENTITY&ssl-ca",
        };
        format!("{}?{parameters}={}", database.url, certificate.display())
    };
    let sink = open::<C>(&url(&server)).await;
    sink.write(&[event(1)]).await.unwrap();
    assert_eq!(newest(&sink, 100).await.count, 1);
    let error = build::<C>(&url(&other)).await.prepare().await.unwrap_err();
    assert!(reason(&error).contains("certificate"), "{error}");
}

async fn hanging_tls_server_does_not_block_close<C: SinkConfig>(servers: Servers) {
    let server = (servers.own_with_tls)();
    let database = server.create_database();
    let parameter = if is_postgres::<C>() { "sslmode=require" } else { "ssl-mode=REQUIRED" };
    let sink = open::<C>(&format!("{}?{parameter}", database.url)).await;
    assert_eq!(newest(&sink, 100).await.count, 0);
    server.pause();
    let start = Instant::now();
    assert!(matches!(sink.prepare().await, Err(WriteError::Retry { .. })));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    server.resume();
    sink.prepare().await.unwrap();
    server.pause();
    let start = Instant::now();
    sink.close().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

async fn debug_output_hides_the_password<C: SinkConfig>(servers: Servers) {
    let database = (servers.shared)().create_database();
    for url in [database.url.clone(), format!("{}?sslmode=disabled-{PASSWORD}-", database.url)] {
        match parse::<PostgresConfig>(&url.replace("mysql:", "postgres:")) {
            Ok(config) => assert!(!format!("{config:?}").contains(PASSWORD), "{config:?}"),
            Err(error) => assert!(!error.contains(&format!("eye:{PASSWORD}")), "{error}"),
        }
        match parse::<MysqlConfig>(&url.replace("postgres:", "mysql:")) {
            Ok(config) => assert!(!format!("{config:?}").contains(PASSWORD), "{config:?}"),
            Err(error) => assert!(!error.contains(&format!("eye:{PASSWORD}")), "{error}"),
        }
    }
    // A URL that cannot be parsed is not quoted either.
    for url in [format!("eye:{PASSWORD}@host/db"), format!("//eye:{PASSWORD}@host"), PASSWORD.to_owned()] {
        let error = parse::<C>(&url).err().unwrap();
        assert!(!error.contains(PASSWORD) && error.contains("must begin with"), "{error}");
    }
}

async fn first_and_last_instant_are_stored<C: SinkConfig>(servers: Servers) {
    let sink = open::<C>(&(servers.shared)().create_database().url).await;
    let events = [Timestamp::MAX, Timestamp::from_micros(2_147_483_648_000_001).unwrap(), Timestamp::MIN].map(at);
    sink.write(&events).await.unwrap();
    assert_eq!(newest(&sink, 10).await.events, events);
    let since = |timestamp| EventFilter { timestamp_after: Some(timestamp), ..EventFilter::default() };
    for (event, expected) in events.iter().zip(1..) {
        assert_eq!(matching(&sink, since(event.timestamp())).await.count, expected);
    }
    let older = page(&sink, PageStart::OlderThan(events[0].key()), 10).await;
    assert_eq!((older.events.as_slice(), older.has_newer), (&events[1..], true));
}

async fn filter_with_nul_finds_nothing<C: SinkConfig>(servers: Servers) {
    let sink = open::<C>(&(servers.shared)().create_database().url).await;
    sink.write(&[event(1)]).await.unwrap();
    let page = matching(&sink, EventFilter { name: Some("na\0me".to_owned()), ..EventFilter::default() }).await;
    assert_eq!((page.count, page.events.len()), (0, 0));
}

async fn page_reports_event_of_its_key<C: SinkConfig>(servers: Servers) {
    common::assert_page_reports_event_of_its_key(&open::<C>(&(servers.shared)().create_database().url).await).await;
}

async fn cancelled_queries_leave_no_broken_connection<C: SinkConfig>(servers: Servers) {
    let sink = open::<C>(&(servers.shared)().create_database().url).await;
    sink.write(&(0..1000).map(event).collect::<Vec<_>>()).await.unwrap();
    for micros in 0..100 {
        let query = sink.store().page(EventQuery { limit: 1000, ..EventQuery::default() });
        drop(tokio::time::timeout(Duration::from_micros(micros * 20), query).await);
    }
    for _ in 0..8 {
        assert_eq!(newest(&sink, 10).await.count, 1000);
    }
}

/// A node that hangs in a fold holds the locks of its counts.
async fn locked_counts_delay_no_write<C: SinkConfig>(servers: Servers) {
    let database = (servers.shared)().create_database();
    let sink = open::<C>(&database.url).await;
    let _holder: Box<dyn Any> = if is_postgres::<C>() {
        let mut holder = PgConnection::connect(&database.url).await.unwrap();
        holder.execute("BEGIN").await.unwrap();
        holder.execute("LOCK TABLE event_count IN EXCLUSIVE MODE").await.unwrap();
        Box::new(holder)
    } else {
        let mut holder = MySqlConnection::connect(&database.url).await.unwrap();
        holder.execute("LOCK TABLES event_count WRITE").await.unwrap();
        Box::new(holder)
    };
    let started = Instant::now();
    for number in 0..3 {
        sink.write(&[event(number)]).await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn url_of_another_database_is_an_error() {
    let postgres = |url: &str| parse::<PostgresConfig>(url).map(drop).unwrap_or_else(|error| panic!("{error}"));
    postgres("postgres://eye@localhost");
    postgres("postgresql://eye:x@localhost:5433/db?sslmode=verify-full");
    for (url, expected) in [
        ("mysql://localhost/db", "must begin with `postgres:` or `postgresql:`"),
        ("postgres//localhost", "must begin with"),
        ("postgres://localhost:port/db", "no URL such as"),
        ("postgres://localhost/db?sslmod=require", "unknown parameter `sslmod`"),
        ("postgres://localhost/db?sslmode=sometimes", "sometimes"),
    ] {
        let error = parse::<PostgresConfig>(url).unwrap_err();
        assert!(error.contains(expected), "{url}: {error}");
    }
    for (url, expected) in [
        ("sqlite://eye.db", "must begin with `mysql:` or `mariadb:`"),
        ("mysql://localhost", "names no database"),
        ("mysql://localhost/", "names no database"),
        ("mysql://localhost/db?ssl_mode=REQUIRED", "unknown parameter `ssl_mode`"),
        ("mysql://localhost:port/db", "no URL such as"),
    ] {
        let error = parse::<MysqlConfig>(url).unwrap_err();
        assert!(error.contains(expected), "{url}: {error}");
    }
    parse::<MysqlConfig>("mariadb://eye:x@localhost/db?ssl-mode=VERIFY_CA").unwrap();
}
