//! Writes the seeds of all corpora: `cargo run --example seeds` in this folder.

fn main() -> std::io::Result<()> {
    for seed in ringmq_fuzz::seeds::all() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
        let folder = std::path::Path::new(folder).join(seed.target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(seed.name), seed.bytes)?;
    }
    Ok(())
}
