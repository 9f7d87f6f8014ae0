use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use eye_harness::Certificate;
use nkeys::KeyPair;

use super::*;

/// Returns the first state of a source with these keys.
async fn state_at(server: &NatsServer, keys: Value) -> ComponentState {
    let fixture = Fixture::start_unready(server, Told::Settle(Outcome::Delivered), keys).await;
    eventually("a state", DEADLINE, async || fixture.state() != ComponentState::Starting).await;
    fixture.state()
}

#[tokio::test]
async fn user_password_and_token_are_accepted() {
    let server = NatsServer::start_with(&["--user", "e:e", "--pass", "p@ss/word"]);
    let with = |keys: Value| {
        let mut all = core(&server);
        all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        all
    };
    let url = format!("nats://e%3Ae:p%40ss%2Fword@127.0.0.1:{}", server.port());
    assert_eq!(state_at(&server, with(json!({"url": url}))).await, ComponentState::Ready);
    assert_eq!(state_at(&server, with(json!({"user": "e:e", "password": "p@ss/word"}))).await, ComponentState::Ready);
    let ComponentState::Unavailable { reason } =
        state_at(&server, with(json!({"user": "e:e", "password": "wrong"}))).await
    else {
        panic!("a wrong password is accepted")
    };
    assert_eq!(reason, format!("no connection to 127.0.0.1:{}: authorization violation", server.port()));

    let server = NatsServer::start_with(&["--auth", "t:oken"]);
    let url = format!("nats://t%3Aoken@127.0.0.1:{}", server.port());
    assert_eq!(state_at(&server, json!({"url": url, "mode": "core", "subjects": ["a"]})).await, ComponentState::Ready);
    let keys = json!({"url": server.url(), "token": "t:oken", "mode": "core", "subjects": ["a"]});
    assert_eq!(state_at(&server, keys).await, ComponentState::Ready);
}

#[tokio::test]
async fn second_server_of_cluster_is_used() {
    let server = NatsServer::start_with(&["--user", "e", "--pass", "p"]);
    let mut stopped = NatsServer::start();
    stopped.kill();
    let ports = [stopped.port(), server.port()];
    for [first, second] in [["e:p@", ""], ["", "e:p@"], ["e:p@", "e:p@"]] {
        let url = format!("nats://{first}127.0.0.1:{},nats://{second}127.0.0.1:{}", ports[0], ports[1]);
        let keys = json!({"url": url, "mode": "core", "subjects": ["a"]});
        let fixture = Fixture::start_unready(&server, Told::Settle(Outcome::Delivered), keys).await;
        eventually("it is found", DEADLINE, async || fixture.state() == ComponentState::Ready).await;
    }
    for (url, reason) in [
        ("nats://e:p@a,nats://e:q@b", "one user and password"),
        ("nats://e:p@a,nats://t@b", "one user and password"),
        ("nats://e:p@a,b:4222", "separated by commas"),
        ("nats://e:p@a,", "separated by commas"),
    ] {
        let error = config(json!({"url": url, "mode": "core", "subjects": ["a"]})).unwrap_err();
        assert!(error.to_string().contains(reason), "{url}: {error}");
    }
}

/// Returns a JWT about `subject`, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, mut nats: Value) -> String {
    nats["version"] = json!(2);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "jti": "1", "iat": now, "iss": issuer.public_key(), "name": "eye", "sub": subject.public_key(), "nats": nats,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let signed = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn credentials_file_is_accepted() {
    let [system, account, stranger] = std::array::from_fn(|_| KeyPair::new_account());
    let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let of_operator = jwt(&operator, &operator, json!({"type": "operator"}));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let known = [&system, &account].map(|account| {
        let of_account = jwt(&operator, account, json!({"type": "account", "limits": limits}));
        format!("{}: {of_account}", account.public_key())
    });
    let (known, system) = (known.join(", "), system.public_key());
    let settings =
        format!("operator: {of_operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{{known}}}\n");
    let server = NatsServer::start_with(&["-c", &file("nats.conf", settings)]);
    for (issuer, is_accepted) in [(&account, true), (&stranger, false)] {
        let of_user = jwt(issuer, &user, json!({"type": "user", "subs": -1, "data": -1, "payload": -1}));
        let seed = user.seed().unwrap();
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let mut keys = core(&server);
        keys["credentials_file"] = json!(file("eye.creds", credentials));
        let state = state_at(&server, keys).await;
        assert_eq!(state == ComponentState::Ready, is_accepted, "{state:?}");
    }
}

#[tokio::test]
async fn requested_tls_is_enforced() {
    let folder = tempfile::tempdir().unwrap();
    let Certificate { certificate, key } = Certificate::create(folder.path());
    let [certificate, key] = [certificate, key].map(|file| file.display().to_string());
    let with_tls = NatsServer::start_with(&["--tls", "--tlscert", &certificate, "--tlskey", &key]);
    let without = NatsServer::start();
    let keys = |url: String, ca_file: &str| json!({"url": url, "mode": "core", "subjects": ["a"], "ca_file": ca_file});
    let tls_url = |server: &NatsServer| server.url().replace("nats:", "tls:");

    assert_eq!(state_at(&with_tls, keys(tls_url(&with_tls), &certificate)).await, ComponentState::Ready);
    for (server, ca_file) in [(&with_tls, ""), (&without, &*certificate)] {
        let state = state_at(server, keys(tls_url(server), ca_file)).await;
        assert!(matches!(state, ComponentState::Unavailable { .. }), "{state:?}");
    }
}

#[tokio::test]
async fn tls_of_one_server_is_required_of_all() {
    let (mut stopped, without) = (NatsServer::start(), NatsServer::start());
    stopped.kill();
    let url = format!("{},{}", stopped.url().replace("nats:", "tls:"), without.url());
    let keys = json!({"url": url, "mode": "core", "subjects": ["a"]});
    let fixture = Fixture::start_unready(&without, Told::Settle(Outcome::Delivered), keys).await;
    let refused = format!(
        "no connection to 127.0.0.1:{}, 127.0.0.1:{}: Connection refused (os error 111); received corrupt message of type \
         InvalidContentType",
        stopped.port(),
        without.port()
    );
    eventually(
        "neither was taken",
        DEADLINE,
        async || matches!(fixture.state(), ComponentState::Unavailable { reason } if reason == refused),
    )
    .await;
}

#[tokio::test]
async fn forbidden_subject_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nats.conf");
    let permissions = "publish: \">\", subscribe: {deny: \"events.>\"}";
    let users = format!("authorization {{users: [{{user: eye, password: eye, permissions: {{{permissions}}}}}]}}");
    std::fs::write(&path, users).unwrap();
    let server = NatsServer::start_with(&["-c", &path.display().to_string()]);
    let mut keys = core(&server);
    keys["user"] = json!("eye");
    keys["password"] = json!("eye");
    let ComponentState::Unavailable { reason } = state_at(&server, keys).await else { panic!("it is ready") };
    assert!(reason.contains("Permissions Violation for Subscription to \"events.>\""), "{reason}");
}
