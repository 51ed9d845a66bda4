//! Raw copies of images for lab disks: a lab disk's server reads plain bytes, and knows no format but that.
//!
//! A copy's name in the cache follows from the identity of every file of the image's chain, so that a chain of which anything was changed has another one.
//! `qemu-img` makes it, sparse, while the chain is locked against who writes to it.

use std::{
    io,
    path::{Path, PathBuf},
};

use belljar_image::{cache, disk::DiskImage};
use belljar_model::EventKind;

use super::made::{self, Recipe, TARGET};
use crate::{Cause, Lost, host::HostContext, plan_image};

/// Part of the names in the cache: change it with how copies are made.
const VERSION: &[u8] = b"1";

/// The raw copy of an image, or a raw image itself.
#[derive(Clone, Debug)]
pub(super) struct RawCopy {
    pub(super) path: PathBuf,
    /// What the image's files were when it was made, or found.
    identity: String,
}

impl RawCopy {
    /// A raw image, of which no copy is needed.
    pub(super) fn itself(image: &DiskImage) -> io::Result<Self> {
        Ok(Self { path: image.path().to_owned(), identity: identity(image)? })
    }

    /// Whether the image still is what it was.
    pub(super) fn is_of(&self, image: &DiskImage) -> io::Result<bool> {
        Ok(identity(image)? == self.identity)
    }
}

/// Stands for the bytes of an image without reading them.
fn identity(image: &DiskImage) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION);
    plan_image::add_identity(image, &mut hasher)?;
    Ok(cache::short(&hasher))
}

/// Finds the raw copy of an image, or makes it; with what a person is told of it. `dir` is for what no cache can take.
///
/// # Errors
/// Why it cannot be made.
pub(super) async fn find(
    disk: &str,
    image: &DiskImage,
    host: &HostContext,
    dir: &Path,
) -> Result<(RawCopy, Vec<EventKind>), Lost> {
    let shown = image.path().display().to_string();
    let unreadable = |error: io::Error| {
        let said = format!("the files of {shown} cannot be looked at: {error}");
        Lost::from(Cause::Description(said)).lasting()
    };
    let identity = identity(image).map_err(unreadable)?;
    let mut command = host.shim.command_for_helper(&host.qemu_img);
    // Nothing is to be followed that was not looked at; the file is all holes, and what is zeros stays one.
    command.args(["convert", "-n", "--target-is-zero", "-O", "raw"]);
    command.arg(format!("json:{}", image.node())).arg(TARGET);
    let (same, before) = (image.clone(), identity.clone());
    let recipe = Recipe {
        name: format!("raw-{identity}"),
        what: format!("raw copy of {shown} for the lab disk {disk}"),
        size: image.virtual_size,
        command,
        program: "qemu-img",
        is_same: Box::new(move || Ok(self::identity(&same)? == before)),
        advice: "",
    };
    let made = made::find(recipe, host, dir).await?;
    let why = format!("the bytes of the lab disk {disk}: a raw copy of {shown} ({})", made.how);
    let mut told = vec![EventKind::Choice { what: "disk".into(), chosen: made.path.display().to_string(), why }];
    told.extend(made.warnings);
    Ok((RawCopy { path: made.path, identity }, told))
}
