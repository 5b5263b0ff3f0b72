/* The bench's receiver: answers every POST with 200 and two bytes, so cheaply that it never is what is measured.
 *
 *   receiver [ADDRESSES [PORT [LOG [CERTIFICATE]]]]
 *
 * ADDRESSES: 127.0.0.1, 127.0.0.2, … (100), so many endpoint hosts; PORT: 0, a free one; LOG: a file that gets a line for
 * each POST, "nanoseconds webhook-id address path", flushed when a summary is printed. What is posted to a path that
 * begins with /hang gets no answer, with /fail a 500; both are logged, and count as requests. CERTIFICATE: a PEM file with
 * chain and key; then it speaks TLS and nothing else. Only where compiled with -DTLS, which takes OpenSSL.
 *
 * RECEIVER_POLL_US in the environment: how many µs to sleep before each look at the sockets (0). In a virtual machine,
 * waking a process that waits on the other core costs whoever sends to it some 40 µs, which a remote endpoint does not.
 *
 * One thread, epoll, HTTP/1.1 with keep-alive and pipelining, bodies by Content-Length only. The first line on standard
 * output is {"port": …}; SIGUSR1 prints a summary line, SIGTERM and SIGINT print it and end, and so does the parent's
 * end. Times are CLOCK_MONOTONIC, the clock that Python's time.monotonic() reads on Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum { HEAD_BYTES = 16384, READ_BYTES = 262144, EVENTS = 256, ADDRESSES_MAX = 1024 };
enum { ID_BYTES = 130, PATH_BYTES = 64 };
enum kind { LISTENER, SIGNALS, CONNECTION };
enum manner { ANSWERS, FAILS, HANGS };

struct source {
    enum kind kind;
    int fd;
};

struct connection {
    struct source source; /* first: epoll's pointer is to it */
#ifdef TLS
    SSL *tls; /* NULL: plain */
#endif
    bool close_after;
    bool post;
    size_t head_bytes;
    unsigned long long body_left;
    bool in_body;
    enum manner manner;
    unsigned address;      /* 1 for 127.0.0.1 */
    char id[ID_BYTES], path[PATH_BYTES]; /* only where there is a log */
    char head[HEAD_BYTES];
};

static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";
static const char FAILED[] = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
static const char NOT_POST[] = "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n";
static unsigned long long requests, connections, broken;
static double first_s, last_s;
static int epoll;
static FILE *arrivals; /* NULL: no log */

static void fail(const char *what) {
    perror(what);
    exit(1);
}

#ifdef TLS
static SSL_CTX *tls; /* NULL: plain */

static void speak_tls(const char *certificate) {
    tls = SSL_CTX_new(TLS_server_method());
    if (tls == NULL || SSL_CTX_use_certificate_chain_file(tls, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, certificate, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    SSL_CTX_set_read_ahead(tls, 1); /* one system call a record, not two */
    SSL_CTX_set_num_tickets(tls, 0);
    signal(SIGPIPE, SIG_IGN); /* what MSG_NOSIGNAL is for the plain ones */
}

static bool open_tls(struct connection *c) {
    c->tls = tls != NULL ? SSL_new(tls) : NULL;
    if (c->tls == NULL) return tls == NULL;
    SSL_set_accept_state(c->tls); /* the first reads are the handshake */
    return SSL_set_fd(c->tls, c->source.fd) == 1;
}

static ssize_t take_bytes(struct connection *c, void *data, size_t size) {
    if (c->tls == NULL) return recv(c->source.fd, data, size, 0);
    ERR_clear_error();
    int bytes = SSL_read(c->tls, data, (int)size), error = bytes > 0 ? 0 : SSL_get_error(c->tls, bytes);
    if (bytes > 0) return bytes;
    errno = EAGAIN;
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? -1 : 0;
}

static bool give_bytes(struct connection *c, const char *data, size_t size) {
    if (c->tls == NULL) return send(c->source.fd, data, size, MSG_NOSIGNAL) == (ssize_t)size;
    ERR_clear_error();
    return SSL_write(c->tls, data, (int)size) == (int)size;
}

static bool has_more(const struct connection *c) {
    return c->tls != NULL && SSL_has_pending(c->tls); /* epoll does not know what OpenSSL has read ahead */
}

static void close_tls(struct connection *c) {
    SSL_free(c->tls);
}
#else
static void speak_tls(const char *certificate) {
    fprintf(stderr, "%s: not compiled with -DTLS\n", certificate);
    exit(2);
}

static bool open_tls(struct connection *c) {
    (void)c;
    return true;
}

static ssize_t take_bytes(struct connection *c, void *data, size_t size) {
    return recv(c->source.fd, data, size, 0);
}

static bool give_bytes(struct connection *c, const char *data, size_t size) {
    return send(c->source.fd, data, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool has_more(const struct connection *c) {
    (void)c;
    return false;
}

static void close_tls(struct connection *c) {
    (void)c;
}
#endif

static void summary(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu_s = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                   (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    printf("{\"requests\": %llu, \"connections\": %llu, \"broken\": %llu, \"first_s\": %.6f, \"last_s\": %.6f, "
           "\"cpu_s\": %.6f}\n",
           requests, connections, broken, first_s, last_s, cpu_s);
    if (arrivals != NULL) fflush(arrivals); /* first: whoever reads the summary finds the lines */
    fflush(stdout);
}

static void watch(struct source *source) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, source->fd, &event) < 0) fail("epoll_ctl");
}

static int listen_on(unsigned number, unsigned short port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    if (fd < 0) fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(fd, 4096) < 0) fail("listen");
    return fd;
}

static unsigned short port_of(int fd) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) < 0) fail("getsockname");
    return ntohs(address.sin_port);
}

static void take(int listener) {
    for (;;) {
        struct sockaddr_in local = {0};
        socklen_t size = sizeof local;
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), yes = 1;
        if (fd < 0) {
            if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) fail("accept4");
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct connection *c = malloc(sizeof *c);
        if (c == NULL) fail("malloc");
        c->source = (struct source){CONNECTION, fd};
        c->head_bytes = 0;
        c->in_body = false;
        getsockname(fd, (struct sockaddr *)&local, &size);
        c->address = ntohl(local.sin_addr.s_addr) - INADDR_LOOPBACK + 1;
        connections++;
        if (!open_tls(c)) fail("SSL_new");
        watch(&c->source);
    }
}

/* The value of a header in the complete head, or NULL. */
static const char *header(const struct connection *c, size_t head_bytes, const char *name) {
    size_t length = strlen(name);
    const char *line = c->head, *end = c->head + head_bytes;
    while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL && (size_t)(end - ++line) > length) {
        if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

/* A word, up to the blank or the line's end that ends it, into `into` of `size` bytes. */
static void copy_word(char *into, size_t size, const char *from) {
    size_t length = from != NULL ? strcspn(from, " \t\r\n") : 0;
    if (length >= size) length = size - 1;
    if (length > 0) memcpy(into, from, length);
    into[length] = '\0';
}

static bool answer(struct connection *c) {
    const char *text = !c->post ? NOT_POST : c->manner == FAILS ? FAILED : OK;
    size_t bytes = strlen(text);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    requests += c->post;
    last_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    if (requests == 1 && c->post) first_s = last_s;
    if (arrivals != NULL && c->post)
        fprintf(arrivals, "%lld%09ld %s %u %s\n", (long long)now.tv_sec, now.tv_nsec, c->id, c->address, c->path);
    if (c->post && c->manner == HANGS) return true;
    /* A peer that does not read its answers is dropped: there is no queue here. */
    return give_bytes(c, text, bytes) && !c->close_after;
}

/* Takes bytes of the head; returns how many, or -1 for what is no request. Sets in_body when the head is complete. */
static ssize_t take_head(struct connection *c, const char *data, size_t bytes) {
    size_t before = c->head_bytes, room = HEAD_BYTES - 1 - before, taken = bytes < room ? bytes : room;
    memcpy(c->head + before, data, taken);
    c->head_bytes += taken;
    size_t from = before > 3 ? before - 3 : 0;
    char *end = memmem(c->head + from, c->head_bytes - from, "\r\n\r\n", 4);
    if (end == NULL) return c->head_bytes < HEAD_BYTES - 1 ? (ssize_t)taken : -1;
    size_t head_bytes = (size_t)(end - c->head) + 4;
    c->head[head_bytes] = '\0'; /* what followed is in `data` still */
    const char *length = header(c, head_bytes, "Content-Length"), *wish = header(c, head_bytes, "Connection");
    if (header(c, head_bytes, "Transfer-Encoding") != NULL) return -1;
    c->body_left = length != NULL ? strtoull(length, NULL, 10) : 0;
    c->close_after = wish != NULL && strncasecmp(wish, "close", 5) == 0;
    c->post = memcmp(c->head, "POST ", 5) == 0;
    const char *path = c->head + 5;
    c->manner = strncmp(path, "/hang", 5) == 0 ? HANGS : strncmp(path, "/fail", 5) == 0 ? FAILS : ANSWERS;
    if (arrivals != NULL && c->post) {
        copy_word(c->id, sizeof c->id, header(c, head_bytes, "webhook-id"));
        copy_word(c->path, sizeof c->path, path);
    }
    c->in_body = true;
    c->head_bytes = 0;
    return (ssize_t)(head_bytes - before);
}

/* Feeds bytes to the connection's state; false: close it. */
static bool feed(struct connection *c, const char *data, size_t bytes) {
    while (bytes > 0 || (c->in_body && c->body_left == 0)) {
        if (c->in_body) {
            size_t body = c->body_left < bytes ? (size_t)c->body_left : bytes;
            data += body;
            bytes -= body;
            c->body_left -= body;
            if (c->body_left > 0) return true;
            c->in_body = false;
            if (!answer(c)) return false;
        } else {
            ssize_t head = take_head(c, data, bytes);
            if (head < 0) return broken++, false;
            data += head;
            bytes -= (size_t)head;
        }
    }
    return true;
}

static void serve(struct connection *c) {
    static char data[READ_BYTES];
    do {
        ssize_t bytes = take_bytes(c, data, sizeof data);
        if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (bytes <= 0 || !feed(c, data, (size_t)bytes)) {
            close_tls(c);
            close(c->source.fd);
            free(c);
            return;
        }
    } while (has_more(c));
}

static void hear(int signals) {
    struct signalfd_siginfo info;
    if (read(signals, &info, sizeof info) != (ssize_t)sizeof info) return;
    summary();
    if (info.ssi_signo != SIGUSR1) exit(0);
}

int main(int argc, char **argv) {
    static struct source listeners[ADDRESSES_MAX];
    static struct epoll_event events[EVENTS];
    unsigned addresses = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 100;
    unsigned short port = argc > 2 ? (unsigned short)strtoul(argv[2], NULL, 10) : 0;
    if (argc > 3 && (arrivals = fopen(argv[3], "w")) == NULL) fail(argv[3]);
    if (arrivals != NULL) setvbuf(arrivals, NULL, _IOFBF, 1 << 20);
    if (argc > 4) speak_tls(argv[4]);
    if (addresses < 1 || addresses > ADDRESSES_MAX) return fprintf(stderr, "ADDRESSES: 1–%d\n", ADDRESSES_MAX), 2;

    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGUSR1);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) fail("epoll_create1");
    struct source signals = {SIGNALS, signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC)};
    watch(&signals);
    for (unsigned i = 0; i < addresses; i++) {
        listeners[i] = (struct source){LISTENER, listen_on(i, port)};
        if (port == 0) port = port_of(listeners[i].fd);
        watch(&listeners[i]);
    }
    printf("{\"port\": %hu}\n", port);
    fflush(stdout);

    const char *pause = getenv("RECEIVER_POLL_US");
    struct timespec poll = {.tv_nsec = pause != NULL ? strtol(pause, NULL, 10) * 1000 : 0};
    for (;;) {
        if (poll.tv_nsec > 0) nanosleep(&poll, NULL);
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < ready; i++) {
            struct source *source = events[i].data.ptr;
            if (source->kind == CONNECTION) serve((struct connection *)source);
            else if (source->kind == LISTENER) take(source->fd);
            else hear(source->fd);
        }
    }
}
