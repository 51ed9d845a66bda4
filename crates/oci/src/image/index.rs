//! What a layout or an archive says of the images in it, and which of them is wanted.

use std::{collections::HashMap, io::Read, path::Path};

use serde::{Deserialize, de::DeserializeOwned};

use super::{Blobs, Config, Image, ImageError, Layer, MOST_LISTS, Wanted};
use crate::{
    archive::shown,
    digest::Digest,
    limits::{Limits, MAX_JSON},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Digest,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    platform: Option<PlatformOf>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct PlatformOf {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// A list of images, or one image.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// An image in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Described {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<DescribedConfig>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DescribedConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Where images are.
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    pub(super) blobs: Blobs,
}

impl Place<'_> {
    /// A description, whose digest is known or not.
    fn read<T: DeserializeOwned>(&self, name: &str, digest: Option<&Digest>) -> Result<T, ImageError> {
        let wrong = |why: String| ImageError::Description { path: self.path.to_owned(), what: name.to_owned(), why };
        let (from, size) = self.blobs.open(self.path, name)?;
        if size > MAX_JSON {
            return Err(wrong(format!("it has more than {} MiB", MAX_JSON >> 20)));
        }
        let mut bytes = Vec::new();
        from.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
        if let Some(wanted) = digest.filter(|digest| !digest.holds_for(&bytes)) {
            let mut hasher = wanted.hasher();
            hasher.update(&bytes);
            let (path, what, found) = (self.path.to_owned(), name.to_owned(), hasher.finish());
            return Err(ImageError::Digest { path, what, wanted: wanted.clone(), found });
        }
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }

    fn blob<T: DeserializeOwned>(&self, digest: &Digest) -> Result<T, ImageError> {
        self.read(&digest.path().join("/"), Some(digest))
    }

    pub(super) fn of_index(self, wanted: Wanted<'_>, limits: Limits) -> Result<Image, ImageError> {
        let mut list: Manifest = self.read("index.json", None)?;
        let mut tag = wanted.tag;
        for _ in 0..MOST_LISTS {
            let one = self.choose(list.manifests, tag, wanted.architecture)?;
            tag = None;
            list = self.blob(&one.digest)?;
            let Some(config) = list.config else { continue };
            let described: Described = self.blob(&config.digest)?;
            let wrong = |why: String| ImageError::Description {
                path: self.path.to_owned(),
                what: format!("the image {}", one.digest),
                why,
            };
            if let Some(secret) = list.layers.iter().find(|layer| layer.media_type.ends_with("+encrypted")) {
                return Err(wrong(format!("its layer {} is encrypted", secret.digest)));
            }
            let names = list.layers.into_iter().map(|layer| (layer.digest.path().join("/"), Some(layer.digest)));
            return self.of_described(described, names.collect(), wrong, limits);
        }
        let why = "lists of images lie in one another too deep".to_owned();
        Err(ImageError::Description { path: self.path.to_owned(), what: "index.json".to_owned(), why })
    }

    /// The image that is wanted.
    fn choose(&self, all: Vec<Descriptor>, tag: Option<&str>, architecture: &str) -> Result<Descriptor, ImageError> {
        let name = |one: &Descriptor| one.annotations.get("org.opencontainers.image.ref.name").cloned();
        let shown_one = |one: &Descriptor| {
            let platform = one.platform.as_ref().map(|platform| format!(" for {}", platform.architecture));
            shown(
                format!("{}{}", name(one).unwrap_or_else(|| one.digest.to_string()), platform.unwrap_or_default())
                    .as_bytes(),
            )
        };
        let is_image = |one: &Descriptor| {
            !one.annotations.contains_key("vnd.docker.reference.type")
                && one.platform.as_ref().is_none_or(|p| matches!(p.os.as_str(), "linux" | ""))
        };
        let images: Vec<Descriptor> = all.into_iter().filter(is_image).collect();
        let names: Vec<String> = images.iter().take(20).map(shown_one).collect();
        let in_full = images.iter().any(|one| tag.is_some() && name(one).as_deref() == tag);
        let fits = |name: &str, tag: &str| if in_full { name == tag } else { is_named(name, tag) };
        let of_tag = |one: &Descriptor| tag.is_none_or(|tag| name(one).is_some_and(|name| fits(&name, tag)));
        let mut left: Vec<Descriptor> = images.into_iter().filter(of_tag).collect();
        if left.len() > 1 {
            let fits =
                |one: &Descriptor| one.platform.as_ref().is_some_and(|platform| platform.architecture == architecture);
            if left.iter().any(fits) {
                left.retain(fits);
            }
            let first = left[0].digest.clone();
            if left.iter().all(|one| one.digest == first) {
                left.truncate(1);
            }
        }
        let fits_none = |one: &Descriptor| one.platform.as_ref().is_some_and(|p| p.architecture != architecture);
        if left.len() > 1 && left.iter().all(fits_none) {
            let mend = format!(
                "none of them is for {architecture}, and which of the others is meant is not said; copy that one alone (skopeo copy --override-arch ARCH)"
            );
            return Err(ImageError::Choice { path: self.path.to_owned(), names, mend });
        }
        match (left.pop(), left.is_empty()) {
            (Some(one), true) => Ok(one),
            _ => Err(self.no_choice(names, tag)),
        }
    }

    fn no_choice(&self, names: Vec<String>, tag: Option<&str>) -> ImageError {
        let mend = match tag {
            Some(tag) => {
                format!("none of them, or more than one, is named {tag:?}; name one by its whole name, as PATH:NAME")
            }
            None => "name one by its tag, as PATH:TAG, or by its whole name, as PATH:NAME".to_owned(),
        };
        ImageError::Choice { path: self.path.to_owned(), names, mend }
    }

    /// What `docker save` says of the images in its archive, if it is one.
    pub(super) fn saved(&self) -> Option<Vec<Saved>> {
        self.read("manifest.json", None).ok()
    }

    pub(super) fn of_docker(
        self,
        mut all: Vec<Saved>,
        wanted: Wanted<'_>,
        limits: Limits,
    ) -> Result<Image, ImageError> {
        let tags = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
        let all_names = |one: &Saved| {
            let names = tags(one);
            if names.is_empty() { vec![one.config.clone()] } else { names }
        };
        let names = all.iter().flat_map(all_names).take(20).map(|name| shown(name.as_bytes())).collect();
        if let Some(tag) = wanted.tag {
            let in_full = all.iter().any(|one| tags(one).iter().any(|name| name == tag));
            let fits = |name: &String| if in_full { name == tag } else { is_named(name, tag) };
            all.retain(|one| tags(one).iter().any(fits));
        }
        let (Some(one), true) = (all.pop(), all.is_empty()) else { return Err(self.no_choice(names, wanted.tag)) };
        // Its name is its digest, with whoever writes such archives.
        let stem = one.config.rsplit('/').next().unwrap_or_default();
        let digest = Digest::sha256(stem.strip_suffix(".json").unwrap_or(stem));
        let described: Described = self.read(&one.config, digest.as_ref())?;
        let wrong = |why: String| ImageError::Description {
            path: self.path.to_owned(),
            what: format!("the image {}", shown(one.config.as_bytes())),
            why,
        };
        let names = one.layers.iter().map(|name| (name.clone(), None)).collect();
        self.of_described(described, names, wrong, limits)
    }

    fn of_described(
        &self,
        described: Described,
        names: Vec<(String, Option<Digest>)>,
        wrong: impl Fn(String) -> ImageError,
        limits: Limits,
    ) -> Result<Image, ImageError> {
        let Described { architecture, os, config, rootfs } = described;
        if !matches!(&*os, "linux" | "") {
            return Err(wrong(format!("it is for {}, and only images for Linux can be guests", shown(os.as_bytes()))));
        }
        let DescribedConfig { env, user, working_dir } = config.unwrap_or_default();
        if names.len() != rootfs.diff_ids.len() {
            return Err(wrong(format!(
                "it has {} layers and {} digests of layers",
                names.len(),
                rootfs.diff_ids.len()
            )));
        }
        let layers = names.into_iter().zip(rootfs.diff_ids);
        let layers = layers.map(|((name, digest), diff)| Layer { name, digest, diff: Some(diff) }).collect();
        let config = Config::new(architecture, env.unwrap_or_default(), user, working_dir);
        Ok(Image {
            path: self.path.to_owned(),
            config,
            layers,
            blobs: self.blobs.share().map_err(|source| ImageError::Open { path: self.path.to_owned(), source })?,
            limits,
        })
    }
}

/// Whether a name of an image is what somebody calls it: the same, or the same tag.
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
}
