# docker build -t the-eye . && docker run -p 127.0.0.1:8000:8000 -v eye-data:/data the-eye

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN install --directory --owner=10001 --group=10001 --mode=700 /data
COPY --from=build /src/target/release/eye /usr/local/bin/
COPY config/docker.toml /etc/eye/eye.toml
ENV EYE_CONFIG=/etc/eye/eye.toml
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Uses bash only, so that the image needs no further package such as curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8000 && echo -e 'GET /readyz HTTP/1.0\\r\\n\\r' >&3 && read -r _ status _ <&3 && [[ $status = 200 ]]"]
ENTRYPOINT ["eye"]
