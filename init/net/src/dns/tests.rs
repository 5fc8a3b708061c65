//! Answers from the table, and whole exchanges over sockets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use super::answer::{Verdict, answer};
use super::table::{Index, Scope};
use super::{Host, Server, Sockets, Table, View};
use crate::exchange::{read_framed, write_framed};
use crate::resolver::Resolver;
use crate::upstream::Upstreams;

fn host(names: &[&str], addresses: &[&str]) -> Host {
    Host {
        names: names.iter().map(ToString::to_string).collect(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ..Host::default()
    }
}

fn view(internal: bool) -> View {
    let many: Vec<String> = (1..=200).map(|n| format!("10.1.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let hosts = vec![
        host(&["web", "3f2a", "www.shop.test"], &["10.0.0.2"]),
        host(&["db"], &["10.0.0.3", "fd00::3"]),
        host(&["db-2", "db"], &["10.0.0.4"]),
        host(&["many"], &many),
    ];
    View { internal, hosts }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

fn reply(index: &Scope, message: &Message) -> Message {
    match answer(index, &message.to_vec().unwrap(), false) {
        Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

#[test]
fn names_of_the_network_are_answered_and_others_forwarded() {
    let index = Scope::of(Index::new(&view(false)));
    let check = |name: &str, kind: RecordType, expected: &[&str]| {
        let reply = reply(&index, &query(name, kind));
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
        assert_eq!((reply.metadata.id, reply.metadata.recursion_available), (7, true));
        assert_eq!(data(&reply), expected, "{name} {kind}");
    };
    check("web", RecordType::A, &["10.0.0.2"]);
    check("WEB", RecordType::A, &["10.0.0.2"]);
    check("3f2a", RecordType::A, &["10.0.0.2"]);
    check("www.shop.test", RecordType::A, &["10.0.0.2"]);
    // IPv4 only: an empty answer, not "no such name".
    check("web", RecordType::AAAA, &[]);
    check("web", RecordType::MX, &[]);
    check("db", RecordType::A, &["10.0.0.3", "10.0.0.4"]);
    check("db", RecordType::AAAA, &["fd00::3"]);
    check("2.0.0.10.in-addr.arpa", RecordType::PTR, &["web."]);
    let reverse = "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    check(reverse, RecordType::PTR, &["db."]);
    for (name, kind) in [
        ("example.test", RecordType::A),
        ("9.0.0.10.in-addr.arpa", RecordType::PTR),
        ("0.0.10.in-addr.arpa", RecordType::PTR),
    ] {
        assert_eq!(answer(&index, &query(name, kind).to_vec().unwrap(), false), Verdict::Forward, "{name}");
    }
}

#[test]
fn an_internal_network_asks_nobody() {
    let index = Scope::of(Index::new(&view(true)));
    assert_eq!(
        reply(&index, &query("example.test", RecordType::A)).metadata.response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(data(&reply(&index, &query("web", RecordType::A))), ["10.0.0.2"]);
}

#[test]
fn long_answers_are_cut_to_what_the_client_takes() {
    let index = Scope::of(Index::new(&view(false)));
    let mut question = query("many", RecordType::A);
    let plain = reply(&index, &question);
    assert!(plain.metadata.truncation && plain.answers.is_empty() && plain.edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    question.set_edns(edns);
    let extended = reply(&index, &question);
    assert!(extended.metadata.truncation && extended.edns.is_some());
    let bytes = question.to_vec().unwrap();
    let Verdict::Reply(whole) = answer(&index, &bytes, true) else { panic!("no reply") };
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
}

#[test]
fn broken_questions_are_answered_briefly_or_not_at_all() {
    let index = Scope::of(Index::new(&view(false)));
    let good = query("web", RecordType::A).to_vec().unwrap();
    assert_eq!(answer(&index, &[], false), Verdict::Drop);
    assert_eq!(answer(&index, &good[..11], false), Verdict::Drop);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(answer(&index, &response, false), Verdict::Drop, "answering answers makes loops");
    let code = |bytes: &[u8]| match answer(&index, bytes, false) {
        Verdict::Reply(reply) => (reply[..2].to_vec(), reply[3] & 15),
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&good[..good.len() - 1]), (vec![0, 7], 1));
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(code(&two), (vec![0, 7], 1));
    let mut update = good.clone();
    update[2] = 5 << 3;
    assert_eq!(code(&update), (vec![0, 7], 4));
    let mut chaos = good.clone();
    let class = chaos.len() - 1;
    chaos[class] = 3;
    assert_eq!(code(&chaos), (vec![0, 7], 5));
}

proptest::proptest! {
    #[test]
    fn no_question_of_a_stranger_does_harm(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let index = Scope::of(Index::new(&view(false)));
        let _ = answer(&index, &bytes, false);
        let mut plausible = query("web", RecordType::A).to_vec().unwrap();
        plausible.extend(&bytes);
        plausible[11] = 1;
        let _ = answer(&index, &plausible, true);
    }
}

/// An upstream server that knows `name` and says so by UDP or, when `cut`, by TCP only.
async fn upstream(name: &'static str, cut: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // Free for UDP says nothing of TCP.
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let respond = move |bytes: &[u8], stream: bool| {
        let question = Message::from_vec(bytes).unwrap();
        let wanted = question.queries[0].clone();
        let known = wanted.name().to_ascii().eq_ignore_ascii_case(name);
        let code = if known { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.response_code = code;
        reply.add_query(wanted.clone());
        if cut && !stream {
            reply.metadata.truncation = true;
        } else if known && wanted.query_type() == RecordType::A {
            reply.add_answer(Record::from_rdata(
                wanted.name().clone(),
                60,
                RData::A(A([192, 0, 2, 80].into())),
            ));
        }
        reply.to_vec().unwrap()
    };
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::Relaxed);
            // Forged answers come first: another number, another spelling.
            let mut forged = respond(&buffer[..length], true);
            forged[0] ^= 1;
            udp.send_to(&forged, from).await.unwrap();
            udp.send_to(&respond(&buffer[..length], false), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            if let Ok(question) = read_framed(&mut stream).await {
                write_framed(&mut stream, &respond(&question, true)).await.unwrap();
            }
        }
    });
    (address, asked)
}

fn servers(list: &[SocketAddr]) -> watch::Receiver<Upstreams> {
    watch::channel(Upstreams { servers: list.to_vec(), search: vec![] }).1
}

#[tokio::test]
async fn the_resolver_follows_truncation_and_passes_a_dead_server() {
    let (working, asked) = upstream("example.test.", true).await;
    // Bound and silent.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = Resolver::new(servers(&[silent.local_addr().unwrap(), working]));
    let found = resolver.lookup("example.test").await.unwrap();
    assert_eq!(found, [IpAddr::from([192, 0, 2, 80])]);
    assert_eq!(asked.load(Ordering::Relaxed), 2, "A and AAAA");
    let missing = resolver.lookup("missing.test").await.unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound, "{missing}");
}

/// Found by a test run on a busy machine: the port that UDP got was some TCP connection's.
#[tokio::test]
async fn any_port_is_one_free_for_both_protocols() {
    let taken: Vec<_> = (0..400).filter_map(|_| std::net::TcpListener::bind("127.0.0.1:0").ok()).collect();
    for _ in 0..400 {
        let sockets = Sockets::bind_to("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = sockets.address().unwrap().port();
        assert!(taken.iter().all(|listener| listener.local_addr().unwrap().port() != port));
    }
}

#[tokio::test]
async fn a_server_answers_by_udp_and_tcp_and_follows_the_table() {
    let (working, asked) = upstream("example.test.", false).await;
    let table = Table::new();
    let sockets = Sockets::bind_to("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = sockets.address().unwrap();
    let kept = sockets.try_clone().unwrap();
    let server = Server::start("front", sockets, table.clone(), servers(&[working])).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let ask = async |name: &str| {
        client.send_to(&query(name, RecordType::A).to_vec().unwrap(), address).await.unwrap();
        let mut buffer = [0; 1500];
        let (count, _) = client.recv_from(&mut buffer).await.unwrap();
        let reply = Message::from_vec(&buffer[..count]).unwrap();
        (reply.metadata.response_code, data(&reply))
    };
    assert_eq!(ask("web").await.0, ResponseCode::NXDomain);
    table.set("front", &view(false));
    table.set("back", &View { internal: false, hosts: vec![host(&["secret"], &["10.9.9.9"])] });
    assert_eq!(ask("web").await.1, ["10.0.0.2"]);
    assert_eq!(ask("secret").await.0, ResponseCode::NXDomain, "another network's name");
    assert_eq!(ask("Example.test").await.1, ["192.0.2.80"]);
    let before = asked.load(Ordering::Relaxed);
    table.set("front", &View { internal: true, hosts: vec![] });
    assert_eq!(ask("example.test").await.0, ResponseCode::NXDomain);
    assert_eq!(asked.load(Ordering::Relaxed), before, "an internal network asks nobody");

    table.set("front", &view(false));
    let mut stream = TcpStream::connect(address).await.unwrap();
    for name in ["many", "example.test"] {
        write_framed(&mut stream, &query(name, RecordType::A).to_vec().unwrap()).await.unwrap();
        let reply = Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap();
        assert_eq!(reply.answers.len(), if name == "many" { 200 } else { 1 });
    }

    // The program starts again with the sockets it stored: a question asked in between is answered.
    drop(server);
    client.send_to(&query("web", RecordType::A).to_vec().unwrap(), address).await.unwrap();
    let _server = Server::start("front", kept, table, servers(&[working])).unwrap();
    let mut buffer = [0; 1500];
    let (count, _) = client.recv_from(&mut buffer).await.unwrap();
    assert_eq!(data(&Message::from_vec(&buffer[..count]).unwrap()), ["10.0.0.2"]);
}

#[test]
fn a_host_sees_the_names_of_all_its_networks_and_its_own_links() {
    let table = Table::new();
    let asker = Host {
        networks: vec!["back".into()],
        links: vec![("store".into(), "db".into())],
        ..host(&["web"], &["10.0.0.2"])
    };
    table.set("front", &View { internal: true, hosts: vec![asker, host(&["other"], &["10.0.0.9"])] });
    table.set("back", &View { internal: false, hosts: vec![host(&["db"], &["10.1.0.3"])] });
    let ask = |from: &str, name: &str| {
        let query = query(name, RecordType::A).to_vec().unwrap();
        match answer(&table.scope("front", from.parse().unwrap()), &query, false) {
            Verdict::Reply(bytes) => data(&Message::from_vec(&bytes).unwrap()).join(" "),
            verdict => format!("{verdict:?}"),
        }
    };
    assert_eq!(ask("10.0.0.2", "other"), "10.0.0.9");
    assert_eq!(ask("10.0.0.2", "db"), "10.1.0.3");
    assert_eq!(ask("10.0.0.2", "Store"), "10.1.0.3");
    // One network of the asker leads outside.
    assert_eq!(ask("10.0.0.2", "example.test"), "Forward");
    for name in ["db", "store", "example.test"] {
        assert_eq!(ask("10.0.0.9", name), "", "{name} is not of the internal network");
    }
}
