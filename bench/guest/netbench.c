// netbench: one TCP connection's throughput and request rate; both ends.
//   netbench serve PORT                  the host's end: sinks, sources and echoes, until killed
//   netbench send|recv|rr HOST PORT S    the guest's end: bytes or requests a second over S seconds
// Prints "BENCH net_NAME VALUE UNIT". What is sent counts when the other end has read it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buf[256 << 10];
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void die(const char *s) { perror(s); printf("BENCHERR %s\n", s); exit(1); }
static void put(int s, const void *p, size_t n) { if (write(s, p, n) != (ssize_t)n) die("write"); }

static void serve(int c) {
    char what; uint64_t total = 0; ssize_t n;
    if (read(c, &what, 1) != 1) return;
    if (what == 's') {
        while ((n = read(c, buf, sizeof buf)) > 0) total += n;
        put(c, &total, sizeof total);
    } else if (what == 'r') {
        while (write(c, buf, sizeof buf) > 0) {}
    } else {
        while ((n = read(c, buf, sizeof buf)) > 0 && write(c, buf, n) == n) {}
    }
}

int main(int argc, char **argv) {
    int one = 1;
    signal(SIGPIPE, SIG_IGN); setvbuf(stdout, 0, _IOLBF, 0);
    if (argc == 3 && !strcmp(argv[1], "serve")) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
        int l = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(l, (void *)&a, sizeof a) || listen(l, 8)) die("listen");
        signal(SIGCHLD, SIG_IGN);
        for (;;) {
            int c = accept(l, 0, 0);
            if (c < 0) continue;
            setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            if (!fork()) { serve(c); _exit(0); }
            close(c);
        }
    }
    if (argc != 5) { fprintf(stderr, "see the source\n"); return 2; }
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    inet_pton(AF_INET, argv[2], &a.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    double secs = atof(argv[4]), t0, t1; uint64_t total = 0; ssize_t n;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(s, (void *)&a, sizeof a)) die("connect");
    t0 = now();
    if (!strcmp(argv[1], "send")) {
        put(s, "s", 1);
        while (now() - t0 < secs) if (write(s, buf, sizeof buf) <= 0) die("send");
        shutdown(s, SHUT_WR);
        if (read(s, &total, sizeof total) != sizeof total) die("sum");
    } else if (!strcmp(argv[1], "recv")) {
        put(s, "r", 1);
        while (now() - t0 < secs) { if ((n = read(s, buf, sizeof buf)) <= 0) die("recv"); total += n; }
    } else {
        put(s, "e", 1);
        while (now() - t0 < secs) { put(s, buf, 64); for (size_t k = 0; k < 64; k += n) if ((n = read(s, buf, 64)) <= 0) die("rr"); total++; }
    }
    t1 = now();
    printf("BENCH net_%s %.0f %s\n", argv[1], total / (t1 - t0), strcmp(argv[1], "rr") ? "B/s" : "req/s");
    return 0;
}
