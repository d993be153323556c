//! `ork-state-new-backend NAME [DIRECTORY]` writes a crate for a new backend. See the crate's
//! module `new_backend`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    ork_state_conformance::run_if_child();
    let mut arguments = std::env::args_os().skip(1);
    let (name, directory, more) = (arguments.next(), arguments.next().map(PathBuf::from), arguments.next());
    let name = match (name.map(std::ffi::OsString::into_string), more) {
        (Some(Ok(name)), None) if !name.starts_with("--") => name,
        _ => {
            eprintln!("usage: ork-state-new-backend NAME [DIRECTORY]");
            return ExitCode::FAILURE;
        }
    };
    match ork_state_conformance::new_backend::run(&name, directory.as_deref()) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(cause) = std::error::Error::source(&error) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}
