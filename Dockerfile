# syntax=docker/dockerfile:1
# The program alone, without a shell, as a user who is not root.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock rust-toolchain.toml ./
COPY fuzz/Cargo.toml fuzz/
COPY src src
COPY migrations migrations
COPY benches benches
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin outpace && cp target/release/outpace /outpace \
    && mkdir -p /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /outpace /usr/local/bin/outpace
COPY --from=build --chown=nonroot:nonroot /data /data
COPY deploy/outpace.yaml /etc/outpace/outpace.yaml
USER nonroot
EXPOSE 8080 8081
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/usr/local/bin/outpace", "health", "--admin", "http://127.0.0.1:8081"]
ENTRYPOINT ["/usr/local/bin/outpace"]
CMD ["serve", "--config", "/etc/outpace/outpace.yaml"]
