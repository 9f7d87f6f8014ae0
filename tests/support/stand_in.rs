//! A stand-in for the program's HTTP server, with prepared answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

/// Starts a server that gives these answers in order, then repeats the last one. Returns its URL and a channel that
/// gets a message for each request.
pub(crate) fn answering(answers: Vec<impl AsRef<str> + Send + 'static>) -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    thread::spawn(move || {
        for number in 0.. {
            let (stream, _) = listener.accept().unwrap();
            if sender.send(()).is_err() {
                return;
            }
            answer(stream, answers[number.min(answers.len() - 1)].as_ref());
        }
    });
    (url, requests)
}

fn answer(mut stream: TcpStream, answer: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    lines.read_exact(&mut vec![0; length]).unwrap();
    let (head, body) = answer.split_once('|').unwrap();
    let length = body.len();
    write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
}
