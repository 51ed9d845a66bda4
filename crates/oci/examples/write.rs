//! Writes the file system of an image: `write IMAGE FILE`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(std::path::PathBuf::from);
    let (Some(image), Some(into)) = (args.next(), args.next()) else { return Err("write IMAGE FILE".into()) };
    let (image, tag) = belljar_oci::image::split_tag(&image);
    let wanted = belljar_oci::image::Wanted { tag: tag.as_deref(), architecture: "amd64" };
    let image = belljar_oci::image::Image::open(&image, wanted, tempfile::tempfile, belljar_oci::limits::Limits::default())?;
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(into)?;
    let facts = image.write(&file)?;
    eprintln!("{:?}\n{facts:?}", image.config());
    Ok(())
}
