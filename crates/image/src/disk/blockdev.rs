//! The block nodes that QEMU is to open for a disk, as objects for `-blockdev` or `blockdev-add`, each after those it
//! refers to.
//!
//! Every file and format is written out and every chain is closed with `"backing": null`, so that QEMU takes nothing
//! from an image's own header. Files of an image are opened read-only and locked against writers; the layer over them
//! is thrown away, so that flushing it to disk is left out.

use serde_json::{Value, json};

use super::DiskImage;

/// Longest that QEMU takes for the name of a node.
const MAX_NAME: usize = 31;

/// The nodes of a disk whose writes go to the [`super::Overlay`] in `fdset`. `node` is the name to refer to and the
/// start of the others' names; at most 20 characters.
#[must_use]
pub fn overlay_nodes(node: &str, fdset: u32, image: &DiskImage) -> Vec<Value> {
    let mut nodes = Vec::new();
    let mut below: Option<String> = None;
    for (i, layer) in image.layers().iter().enumerate().rev() {
        let name = format!("{node}-base{i}");
        let file = format!("{name}-f");
        debug_assert!(file.len() <= MAX_NAME, "{file}");
        nodes.push(json!({
            "driver": if layer.device { "host_device" } else { "file" },
            "node-name": file,
            "filename": layer.path.to_string_lossy(),
            "read-only": true,
            "locking": "on",
        }));
        let mut format = json!({
            "driver": layer.format.driver(),
            "node-name": name,
            "file": file,
            "read-only": true,
        });
        if layer.format.can_be_backed() {
            format["backing"] = below.take().map_or(Value::Null, Value::from);
        }
        nodes.push(format);
        below = Some(name);
    }
    let file = format!("{node}-f");
    nodes.push(layer_file(&file, fdset));
    nodes.push(json!({
        "driver": "qcow2",
        "node-name": node,
        "file": file,
        "backing": below,
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": true },
    }));
    nodes
}

/// The nodes of a disk that [`super::create_empty`] made.
#[must_use]
pub fn empty_nodes(node: &str, fdset: u32) -> Vec<Value> {
    let file = format!("{node}-f");
    vec![
        layer_file(&file, fdset),
        json!({
            "driver": "raw",
            "node-name": node,
            "file": file,
            "discard": "unmap",
            "cache": { "direct": false, "no-flush": true },
        }),
    ]
}

fn layer_file(name: &str, fdset: u32) -> Value {
    json!({
        "driver": "file",
        "node-name": name,
        "filename": format!("/dev/fdset/{fdset}"),
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": true },
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Layer};
    use super::*;

    #[test]
    fn every_node_comes_after_those_it_refers_to() {
        let layer = |path: &str, format| Layer { path: path.into(), format, device: path.starts_with("/dev") };
        let image = DiskImage {
            layers: vec![
                layer("/x/top.qcow2", Format::Qcow2),
                layer("/x/mid.vmdk", Format::Vmdk),
                layer("/dev/disk", Format::Raw),
            ],
            virtual_size: 1 << 30,
            probed: true,
        };
        let nodes = overlay_nodes("disk0", 7, &image);
        let mut known: Vec<&str> = Vec::new();
        for node in &nodes {
            for key in ["file", "backing"] {
                if let Some(name) = node[key].as_str() {
                    assert!(known.contains(&name), "{node}");
                }
            }
            known.push(node["node-name"].as_str().unwrap());
        }
        assert_eq!(known.last(), Some(&"disk0"));
        assert_eq!(nodes[0]["driver"], "host_device");
        assert_eq!(nodes[1].get("backing"), None, "raw takes no such key");
        let read_only = nodes.iter().filter(|n| n["read-only"] == true).count();
        assert_eq!(read_only, 6, "all but the layer on top");
    }

    #[test]
    fn a_chain_ends_where_it_was_seen_to_end() {
        let image = DiskImage {
            layers: vec![Layer { path: "/x".into(), format: Format::Qcow2, device: false }],
            virtual_size: 1,
            probed: false,
        };
        assert_eq!(overlay_nodes("d", 1, &image)[1]["backing"], Value::Null);
    }
}
