//! Clients that send a part of a request or all of it and disconnect before the answer.

use eye_harness::{Eye, eventually};

use super::trial::{Setup, Transport, Trial, rounds};
use crate::support::HANG;
use crate::support::store::{ALL, Kind, Store};

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_clients_leak_nothing() {
    let clients = rounds() * 100;
    for kind in ALL {
        let setup = Setup {
            change_load: |load| {
                load.disconnecting = 16;
                load.max_pause_ms = 5;
            },
            ..Setup::default()
        };
        let store = Store::new(kind);
        let mut trial = Trial::start_with("Clients disconnect in mid-request", Transport::Memory, store, setup).await;
        trial.load().await;
        trial.until("200 requests were cut off", |counts| counts.disconnects >= 200).await;
        trial.check().await;
        let (files, memory) = (open_files(&trial.eye), memory_bytes(&trial.eye));
        let disconnects = trial.oracle.counts().await.disconnects;
        trial.load().await;
        while trial.oracle.counts().await.disconnects < disconnects + clients {
            let before = trial.oracle.counts().await.disconnects;
            trial.until("more requests were cut off", |counts| counts.disconnects > before).await;
        }
        trial.check().await;
        eventually("no transaction is left open", HANG, async || transactions(&trial.store).await == ["0"]).await;
        // The number of connections of the sink and of other clients varies.
        eventually("no file is left open", HANG, async || open_files(&trial.eye) <= files + 16).await;
        let grown = memory_bytes(&trial.eye).saturating_sub(memory);
        assert!(grown < 32 << 20, "{kind:?}: {grown} bytes more after {clients} disconnects");
        trial.report(disconnects + clients);
    }
}

fn open_files(eye: &Eye) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", eye.pid())).unwrap().count()
}

fn memory_bytes(eye: &Eye) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", eye.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Counts the idle open transactions.
async fn transactions(store: &Store) -> Vec<String> {
    let sql = match store.kind {
        // Transactions of SQLite are not visible from outside. A leaked one would prevent this lock.
        Kind::Sqlite => {
            store.lock().await.release().await;
            "SELECT '0'"
        }
        Kind::Postgres => {
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
        }
        Kind::MariaDb => {
            "SELECT COUNT(*) FROM information_schema.innodb_trx
             JOIN information_schema.processlist ON id = trx_mysql_thread_id WHERE db = DATABASE()"
        }
    };
    store.sql(sql).await
}
