//! The role of the walk-through in `docs/adding-a-role.md`, taken from the page word for word, and places that have it: a folder of roles, and a house laid
//! out as the clone whose region has the role. Both are links to what is shipped; only the new role's folder is new.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::region::programs;

/// The role's name on the page.
pub const ROLE: &str = "status-page";

fn clone() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The fenced blocks of the page, in order: role.yaml, then its template.
///
/// # Errors
/// The page is not there, or has no such block.
pub fn page() -> anyhow::Result<(String, String)> {
    let page = fs::read_to_string(clone().join("docs/adding-a-role.md")).context("the walk-through")?;
    let block = |language: &str| {
        let (_, rest) = page.split_once(&format!("```{language}\n"))?;
        Some(rest.split_once("```")?.0.to_owned())
    };
    block("yaml").zip(block("jinja")).context("the walk-through has no two blocks")
}

/// Makes `folder` with a link to every role in `shipped` and with the new role in it; one of its name that somebody has added there gives way.
///
/// # Errors
/// It cannot be written, or see [`page`].
pub fn roles(folder: &Path, shipped: &Path) -> anyhow::Result<()> {
    fs::create_dir(folder)?;
    for entry in fs::read_dir(shipped)? {
        let entry = entry?;
        if entry.file_name() == ROLE {
            continue;
        }
        symlink(fs::canonicalize(entry.path())?, folder.join(entry.file_name()))?;
    }
    let (role, template) = page()?;
    let new = folder.join(ROLE);
    fs::create_dir(&new)?;
    fs::write(new.join("role.yaml"), role)?;
    Ok(fs::write(new.join("index.html.j2"), template)?)
}

/// Makes a house in `folder` beside whose programs a region finds the new role too; gives the folder of these programs.
///
/// # Errors
/// It cannot be written, or see [`page`].
pub fn house(folder: &Path) -> anyhow::Result<PathBuf> {
    let shipped = fs::canonicalize(programs()).context("the programs are not built")?;
    let sources = shipped.parent().context("the programs lie in a folder of the clone")?;
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    for entry in fs::read_dir(&shipped)? {
        let from = entry?.path();
        let to = bin.join(from.file_name().context("a program has a name")?);
        // The very file: a program that is a symbolic link finds what lies beside its target.
        if from.is_file() && fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to)?;
        }
    }
    for part in ["ami", "pipeline", "localcloud"] {
        symlink(sources.join(part), folder.join(part))?;
    }
    roles(&folder.join("roles"), &sources.join("roles"))?;
    Ok(bin)
}
