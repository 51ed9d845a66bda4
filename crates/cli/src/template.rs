//! What the user says about templates.

use belljar_machine::{
    lease::{Templates, Use},
    template::TemplateStore,
};

use crate::{args::HostArgs, env, settings::cache_dir, specs};

/// Bytes that templates may take by default: some thirty of a Debian image's.
const LIMIT: u64 = 10 << 30;

/// Where templates are, and whether they are used.
pub(crate) fn settings(args: &HostArgs) -> Result<Templates, String> {
    let switched = match env::get(env::TEMPLATES) {
        None => true,
        Some(text) if text == "on" => true,
        Some(text) if text == "off" => false,
        Some(text) => return Err(format!("{}={}: write on or off", env::TEMPLATES, text.display())),
    };
    let using = if switched && !args.no_template { Use::Make } else { Use::Never };
    Ok(Templates { store: store()?, using })
}

/// Where templates are.
pub(crate) fn store() -> Result<TemplateStore, String> {
    let limit = match env::get(env::TEMPLATE_LIMIT) {
        None => LIMIT,
        Some(text) => text
            .to_str()
            .ok_or_else(|| "not text".to_owned())
            .and_then(specs::size)
            .map_err(|e| format!("{}: {e}", env::TEMPLATE_LIMIT))?,
    };
    Ok(TemplateStore::new(cache_dir()?.join("templates"), limit))
}
