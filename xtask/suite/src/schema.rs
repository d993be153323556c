//! `cargo xtask schema`: writes the schema of a freshly migrated database into the crate of each
//! SQL backend, as a page with a diagram.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ork_state_api::{ConnectOptions, Registry};
use sqlx::{AnyConnection, Connection, Row};

use xtask::TaskResult;

use crate::backends::fixtures;

/// Writes the schema of each SQL backend into its crate.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Write nothing; fail if a page is out of date.
    #[arg(long)]
    check: bool,
}

/// Lines of `kind | table | text`, in the page's order.
const SQLITE: &str = "
    SELECT 'column' AS kind, m.name AS object, c.name || ' ' || c.type || iif(c.\"notnull\", ' not null', '') || iif(c.pk, ' pk', '') AS line
    FROM sqlite_schema AS m
    CROSS JOIN pragma_table_info(m.name) AS c
    WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%'
    UNION ALL
    SELECT 'index', m.tbl_name, m.sql FROM sqlite_schema AS m WHERE m.type = 'index' AND m.sql IS NOT NULL
    UNION ALL
    SELECT 'reference', m.name, f.\"table\" FROM sqlite_schema AS m CROSS JOIN pragma_foreign_key_list(m.name) AS f WHERE m.type = 'table'";
const POSTGRES: &str = "
    SELECT 'column' AS kind, c.relname::text AS object,
        a.attname || ' ' || replace(format_type(a.atttypid, a.atttypmod), ' ', '_') || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
        || CASE WHEN a.attnum = ANY (i.indkey) THEN ' pk' ELSE '' END AS line
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
    UNION ALL
    SELECT 'index', t.tablename::text, t.indexdef FROM pg_indexes t WHERE t.schemaname = 'public'
    UNION ALL
    SELECT 'reference', k.conrelid::regclass::text, k.confrelid::regclass::text
    FROM pg_constraint k WHERE k.contype = 'f' AND k.connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'function', '', '- `' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')`: '
        || replace(obj_description(p.oid, 'pg_proc'), 'ork-state: ', '')
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace";

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    sqlx::any::install_default_drivers();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut stale = Vec::new();
    for fixture in fixtures() {
        let query = match fixture.backend() {
            "postgres" => POSTGRES,
            "sqlite" => SQLITE,
            _ => continue,
        };
        let path: PathBuf = root.join(format!("ork-state-{}/SCHEMA.md", fixture.backend()));
        let page = runtime.block_on(async {
            let store = fixture.empty().await?;
            Registry::linked()?.connect(ConnectOptions::new(&store.url())?).await?.migrate().await?;
            let page = page(fixture.backend(), &store.url(), query).await;
            drop(store);
            fixture.finish().await;
            page
        })?;
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        if arguments.check && there != page {
            stale.push(path.display().to_string());
        } else if !arguments.check {
            std::fs::write(&path, page)?;
            println!("wrote {}", path.display());
        }
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("out of date: {}; run `cargo xtask schema`", stale.join(", "));
    Ok(ExitCode::FAILURE)
}

async fn page(backend: &str, url: &str, query: &'static str) -> Result<String, Box<dyn std::error::Error>> {
    let mut connection = AnyConnection::connect(url).await?;
    let rows = sqlx::query(query).fetch_all(&mut connection).await?;
    connection.close().await?;
    let (mut tables, mut rest) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    for row in &rows {
        let (kind, object, line): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match kind.as_str() {
            "column" => tables.entry(object).or_default().push(line),
            _ => rest.push((kind, object, line)),
        }
    }
    rest.sort();
    let mut page = format!(
        "# The schema of ork-state-{backend}\n\nMade by `cargo xtask schema` from a freshly migrated database. What each table is for is told in \
         [migrations](migrations).\n\n```mermaid\nerDiagram\n"
    );
    for (_, from, to) in rest.iter().filter(|(kind, ..)| kind == "reference") {
        writeln!(page, "    {to} ||--o{{ {from} : has")?;
    }
    for (table, columns) in &tables {
        writeln!(page, "    {table} {{")?;
        for column in columns {
            let mut words = column.split(' ');
            let (name, kind) =
                (words.next().unwrap_or(""), words.next().unwrap_or("").replace(['[', ']'], "_"));
            let key = if column.ends_with(" pk") { " PK" } else { "" };
            writeln!(page, "        {kind} {name}{key}")?;
        }
        page += "    }\n";
    }
    page += "```\n";
    for (table, columns) in &tables {
        writeln!(page, "\n## {table}\n\n```text")?;
        columns.iter().try_for_each(|column| writeln!(page, "{column}"))?;
        for (_, _, line) in rest.iter().filter(|(kind, object, _)| kind == "index" && object == table) {
            writeln!(page, "\n{}", line.split_whitespace().collect::<Vec<_>>().join(" "))?;
        }
        page += "```\n";
    }
    let functions: Vec<&str> =
        rest.iter().filter(|(kind, ..)| kind == "function").map(|(.., line)| line.as_str()).collect();
    if !functions.is_empty() {
        write!(
            page,
            "\n## Functions\n\nTheir texts are in [functions](functions).\n\n{}\n",
            functions.join("\n")
        )?;
    }
    Ok(page)
}
