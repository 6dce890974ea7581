export CARGO_HOME="$PWD/cargo-home"
mkdir -p app/src app/.cargo && touch app/src/lib.rs && cd app
{ printf '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\n'
  for n in 01 02 03 04 05 06 07 08 09 10 11; do printf 'tiny%s = { version = "1", registry = "here" }\n' $n; done; } > Cargo.toml
printf '[registries.here]\nindex = "sparse+%s/index/"\n' "$API" > .cargo/config.toml
cargo generate-lockfile -q
# The registry's own description, and one entry for each crate.
echo "$(($(grep -c '^name = "tiny' Cargo.lock) + 1)) ok"
# Twice in a second where one is allowed: its description, and then the entry.
cd .. && mkdir -p other/src other/.cargo && touch other/src/lib.rs && cd other
printf '[package]\nname = "other"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\ntiny01 = { version = "1", registry = "here" }\n' > Cargo.toml
printf '[registries.here]\nindex = "sparse+%s/index/"\n[net]\nretry = 0\n' "$OTHER" > .cargo/config.toml
cargo generate-lockfile 2>&1 | tee told.txt >/dev/null || true
grep -o -m1 '429' told.txt | sed 's/429/told/'
cat told.txt >&2
