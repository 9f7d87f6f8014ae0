//! The database schema of The Eye, as SeaORM migrations. [`migrate`] brings a database up to date.

mod m0001_initial;
pub mod period;

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait,
};

/// The table that records applied migrations. SeaORM's default name would clash with another SeaORM program in the same
/// database.
const MIGRATION_TABLE: &str = "eye_migration";

/// The key of PostgreSQL's advisory lock: "eye" in ASCII.
const ADVISORY_LOCK_KEY: i64 = 0x65_79_65;

/// All migrations, oldest first.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_initial::Migration)]
    }

    fn migration_table_name() -> DynIden {
        MIGRATION_TABLE.into_iden()
    }
}

/// Brings the schema up to date. A current schema needs no write and no right to change the schema. Several nodes may
/// call it at once: one migrates, the others wait for at most 10 seconds.
///
/// `db` is a pool of one connection that the caller closes afterwards, because MySQL's lock belongs to its session.
///
/// # Errors
/// [`DbErr::Migration`] when a newer version of the program has migrated the database; else the database's error.
pub async fn migrate(db: &DatabaseConnection) -> Result<(), DbErr> {
    if is_current(db).await? {
        return Ok(());
    }
    let options = TransactionOptions {
        sqlite_transaction_mode: (db.get_database_backend() == DbBackend::Sqlite)
            .then_some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(options).await?;
    lock(&transaction).await?;
    Migrator::up(&transaction, None).await?;
    transaction.commit().await
}

/// Returns true when all migrations are applied: [`migrate`] has nothing to do.
///
/// # Errors
/// Those of [`migrate`].
pub async fn is_current(db: &DatabaseConnection) -> Result<bool, DbErr> {
    if !SchemaManager::new(db).has_table(MIGRATION_TABLE).await? {
        return Ok(false);
    }
    let select = Query::select().column("version").from(MIGRATION_TABLE).take();
    let rows = db.query_all(&select).await?;
    let applied = rows.iter().map(|row| row.try_get("", "version")).collect::<Result<Vec<String>, _>>()?;
    let known = Migrator::migrations();
    if let Some(newer) = applied.iter().find(|version| !known.iter().any(|migration| migration.name() == *version)) {
        return Err(DbErr::Migration(format!(
            "the database has the schema of a newer version of The Eye (migration `{newer}`): run that version"
        )));
    }
    Ok(known.iter().all(|migration| applied.iter().any(|version| version == migration.name())))
}

/// Waits until no other node migrates. For SQLite `BEGIN IMMEDIATE` suffices.
async fn lock(transaction: &impl ConnectionTrait) -> Result<(), DbErr> {
    let backend = transaction.get_database_backend();
    match backend {
        DbBackend::Postgres => {
            transaction.execute_unprepared("SET LOCAL lock_timeout = '10s'").await?;
            transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({ADVISORY_LOCK_KEY})")).await?;
        }
        DbBackend::MySql => {
            let sql = "SELECT COALESCE(GET_LOCK(LEFT(CONCAT('eye.', DATABASE()), 64), 10), 0)";
            let row = transaction.query_one_raw(Statement::from_string(backend, sql)).await?;
            let locked = row.map(|row| row.try_get_by_index::<i64>(0)).transpose()?;
            if locked != Some(1) {
                let reason = "another node is still migrating the database: try again when it is done";
                return Err(DbErr::Conn(RuntimeErr::Internal(reason.to_owned())));
            }
        }
        _ => {}
    }
    Ok(())
}
