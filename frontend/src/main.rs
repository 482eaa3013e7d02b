//! `gangplank-frontend`: parse and run.

use clap::Parser;
use gangplank_frontend::args::Args;

fn main() {
    let Args {} = Args::parse();
}
