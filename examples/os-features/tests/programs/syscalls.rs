//! Promises of the kernel that a shell cannot ask for. A test program of Rust's own harness: Belljar lists its tests, runs
//! each alone and reports each by its name.

use std::{
    fs, io,
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::FileExt, net::UnixStream},
    path::PathBuf,
    process::Command,
};

/// A directory of this test alone.
fn scratch(name: &str) -> io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir(&dir)?;
    Ok(dir)
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() -> io::Result<()> {
    let path = scratch("unlinked")?.join("file");
    let mut file = fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(b"still here")?;
    file.seek(SeekFrom::Start(0))?;
    let mut content = String::new();
    file.read_to_string(&mut content)?;
    assert_eq!(content, "still here");
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}

#[test]
fn a_rename_replaces_and_an_open_file_stays_what_it_was() -> io::Result<()> {
    let dir = scratch("rename")?;
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "old")?;
    fs::write(&new, "new")?;
    let open = fs::File::open(&old)?;
    fs::rename(&new, &old)?;
    assert_eq!(fs::read_to_string(&old)?, "new");
    let mut content = [0; 3];
    open.read_exact_at(&mut content, 0)?;
    assert_eq!(&content, b"old");
    Ok(())
}

#[test]
fn a_pipe_without_a_reader_is_broken() -> io::Result<()> {
    let (reader, mut writer) = UnixStream::pair()?;
    drop(reader);
    assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    Ok(())
}

#[test]
fn a_port_has_one_listener() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    assert_eq!(TcpListener::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
    TcpStream::connect(address)?;
    drop(listener);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    Ok(())
}

#[test]
fn a_running_program_is_not_written_to() -> io::Result<()> {
    let program = scratch("busy")?.join("sleep");
    fs::copy("/bin/sleep", &program)?;
    let mut child = Command::new(&program).arg("600").spawn()?;
    let refused = fs::File::options().write(true).open(&program).unwrap_err();
    child.kill()?;
    child.wait()?;
    assert_eq!(refused.kind(), ErrorKind::ExecutableFileBusy);
    Ok(())
}

#[test]
#[ignore = "an example of a test that is left out unless it is asked for"]
fn the_machine_has_a_terabyte_of_memory() {
    unreachable!("it has not");
}
