//! The first process of the machine; see [`caisson_agent::machine`].

fn main() {
    caisson_agent::machine::main();
}
