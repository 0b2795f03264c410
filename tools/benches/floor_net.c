/* The network of one start, with raw netlink: a namespace, a routed veth pair (IPv4 and IPv6), elements of nft sets.
 *
 * Two rtnetlink batches (one socket in the host's namespace, one made inside the new one) and one nfnetlink batch. The last message
 * of each asks for an acknowledgement, as the product's do, and any refusal ends the program: a floor that skips work is none.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HOST_INDEX = 100000, PEER_INDEX = 2, GROUP = 0x666c0000 };

struct batch {
    _Alignas(8) unsigned char bytes[4096];
    size_t used;
    unsigned count;
    struct nlmsghdr *message, *last; /* the one that is being written, and the last one that is answered */
};

static int host_route, host_nft;

/* ---- encoding ---- */

static void *put(struct batch *b, size_t size)
{
    void *at = b->bytes + b->used;
    b->used += NLMSG_ALIGN(size);
    if (b->used > sizeof b->bytes)
        die("batch", "too long");
    memset(at, 0, NLMSG_ALIGN(size));
    return at;
}

static void *begin(struct batch *b, unsigned type, unsigned flags, size_t header)
{
    b->message = put(b, NLMSG_HDRLEN);
    b->message->nlmsg_type = (uint16_t)type;
    b->message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    b->message->nlmsg_seq = ++b->count;
    if (type != NFNL_MSG_BATCH_END)
        b->last = b->message;
    return put(b, header);
}

static void end(struct batch *b)
{
    b->message->nlmsg_len = (uint32_t)(b->bytes + b->used - (unsigned char *)b->message);
}

static struct nlattr *nest(struct batch *b, unsigned type)
{
    struct nlattr *a = put(b, NLA_HDRLEN);
    a->nla_type = (uint16_t)type;
    return a;
}

static void nest_end(struct batch *b, struct nlattr *a)
{
    a->nla_len = (uint16_t)(b->bytes + b->used - (unsigned char *)a);
}

static void attr(struct batch *b, unsigned type, const void *value, size_t size)
{
    struct nlattr *a = put(b, NLA_HDRLEN + size);
    a->nla_type = (uint16_t)type;
    a->nla_len = (uint16_t)(NLA_HDRLEN + size);
    memcpy(a + 1, value, size);
}

static void attr_u32(struct batch *b, unsigned type, uint32_t value) { attr(b, type, &value, sizeof value); }
static void attr_text(struct batch *b, unsigned type, const char *text) { attr(b, type, text, strlen(text) + 1); }

static void exchange(int fd, struct batch *b, const char *what)
{
    _Alignas(8) unsigned char reply[16384];
    b->last->nlmsg_flags |= NLM_F_ACK;
    check(send(fd, b->bytes, b->used, 0), "send", what);
    for (;;) {
        ssize_t size = check(recv(fd, reply, sizeof reply, 0), "recv", what);
        for (struct nlmsghdr *m = (void *)reply; NLMSG_OK(m, (size_t)size); m = NLMSG_NEXT(m, size)) {
            const struct nlmsgerr *e = NLMSG_DATA(m);
            if (m->nlmsg_type != NLMSG_ERROR)
                continue;
            errno = -e->error;
            if (e->error) {
                fprintf(stderr, "floor: message %u of %s\n", m->nlmsg_seq, what);
                die("netlink", what);
            }
            if (m->nlmsg_seq == b->last->nlmsg_seq)
                return;
        }
    }
}

static int netlink_socket(int protocol)
{
    int one = 1;
    int fd = check(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol), "socket", "netlink");
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    return fd;
}

/* ---- addresses of a slot ---- */

struct addresses {
    char host_name[IFNAMSIZ];
    uint32_t host_index;
    unsigned char host_mac[6], peer_mac[6], v4[4], v6[16];
};

static const unsigned char gateway4[4] = {169, 254, 1, 1};
static const unsigned char gateway6[16] = {0xfe, 0x80, [15] = 1};

static void derive(struct addresses *a, unsigned slot)
{
    memset(a, 0, sizeof *a);
    snprintf(a->host_name, sizeof a->host_name, "fl%u", slot);
    a->host_index = HOST_INDEX + slot;
    unsigned char high = (unsigned char)(slot >> 8), low = (unsigned char)slot;
    memcpy(a->host_mac, (unsigned char[]){0x02, 0xa0, 0, 1, high, low}, 6);
    memcpy(a->peer_mac, (unsigned char[]){0x02, 0xa0, 0, 2, high, low}, 6);
    memcpy(a->v4, (unsigned char[]){100, 127, high, low}, 4);
    memcpy(a->v6, (unsigned char[16]){0xfd, 0xf0, [14] = high, [15] = low}, 16);
}

/* ---- rtnetlink ---- */

/* Otherwise a veth has one for each processor. */
static void one_queue(struct batch *b)
{
    attr_u32(b, IFLA_NUM_TX_QUEUES, 1);
    attr_u32(b, IFLA_NUM_RX_QUEUES, 1);
}

static void link_create(struct batch *b, const struct addresses *a, int netns)
{
    struct ifinfomsg *host = begin(b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *host);
    host->ifi_index = (int)a->host_index;
    attr_text(b, IFLA_IFNAME, a->host_name);
    attr(b, IFLA_ADDRESS, a->host_mac, 6);
    attr_u32(b, IFLA_GROUP, GROUP);
    one_queue(b);
    struct nlattr *info = nest(b, IFLA_LINKINFO);
    attr_text(b, IFLA_INFO_KIND, "veth");
    struct nlattr *data = nest(b, IFLA_INFO_DATA), *peer_nest = nest(b, VETH_INFO_PEER);
    struct ifinfomsg *peer = put(b, sizeof *peer);
    peer->ifi_index = PEER_INDEX;
    attr_text(b, IFLA_IFNAME, "eth0");
    attr(b, IFLA_ADDRESS, a->peer_mac, 6);
    attr_u32(b, IFLA_NET_NS_FD, (uint32_t)netns);
    one_queue(b);
    nest_end(b, peer_nest);
    nest_end(b, data);
    nest_end(b, info);
    end(b);
}

/* Up, without an automatic link-local address; `alias` names the owner on the host's side. */
static void link_up(struct batch *b, uint32_t index, const char *alias)
{
    struct ifinfomsg *m = begin(b, RTM_NEWLINK, 0, sizeof *m);
    m->ifi_index = (int)index;
    m->ifi_flags = m->ifi_change = IFF_UP;
    if (alias)
        attr_text(b, IFLA_IFALIAS, alias);
    struct nlattr *spec = nest(b, IFLA_AF_SPEC), *inet6 = nest(b, AF_INET6);
    attr(b, IFLA_INET6_ADDR_GEN_MODE, &(uint8_t){IN6_ADDR_GEN_MODE_NONE}, 1);
    nest_end(b, inet6);
    nest_end(b, spec);
    end(b);
}

static void address(struct batch *b, uint32_t index, int family, const unsigned char *value)
{
    size_t size = family == AF_INET ? 4 : 16;
    struct ifaddrmsg *m = begin(b, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *m);
    m->ifa_family = (uint8_t)family;
    m->ifa_prefixlen = (uint8_t)(size * 8);
    m->ifa_index = index;
    m->ifa_flags = family == AF_INET6 ? IFA_F_NODAD : 0;
    attr(b, IFA_LOCAL, value, size);
    attr(b, IFA_ADDRESS, value, size);
    end(b);
}

static void neighbour(struct batch *b, uint32_t index, int family, const unsigned char *value, const unsigned char *mac)
{
    struct ndmsg *m = begin(b, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof *m);
    m->ndm_family = (uint8_t)family;
    m->ndm_ifindex = (int)index;
    m->ndm_state = NUD_PERMANENT;
    attr(b, NDA_DST, value, family == AF_INET ? 4 : 16);
    attr(b, NDA_LLADDR, mac, 6);
    end(b);
}

/* A host route to `to`, or the default route through `gateway`. */
static void route(struct batch *b, uint32_t index, int family, const unsigned char *to, const unsigned char *gateway)
{
    size_t size = family == AF_INET ? 4 : 16;
    struct rtmsg *m = begin(b, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *m);
    m->rtm_family = (uint8_t)family;
    m->rtm_dst_len = to ? (uint8_t)(size * 8) : 0;
    m->rtm_table = RT_TABLE_MAIN;
    m->rtm_protocol = RTPROT_STATIC;
    m->rtm_type = RTN_UNICAST;
    m->rtm_scope = gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
    m->rtm_flags = gateway ? RTNH_F_ONLINK : 0;
    if (to)
        attr(b, RTA_DST, to, size);
    if (gateway)
        attr(b, RTA_GATEWAY, gateway, size);
    attr_u32(b, RTA_OIF, index);
    end(b);
}

static void both_sides(const struct addresses *a, int netns, int inside)
{
    struct batch host = {.used = 0}, peer = {.used = 0};
    link_create(&host, a, netns);
    link_up(&host, a->host_index, "agentos-floor/0123456789ab");
    neighbour(&host, a->host_index, AF_INET, a->v4, a->peer_mac);
    neighbour(&host, a->host_index, AF_INET6, a->v6, a->peer_mac);
    route(&host, a->host_index, AF_INET, a->v4, NULL);
    route(&host, a->host_index, AF_INET6, a->v6, NULL);
    exchange(host_route, &host, "the host's side");
    link_up(&peer, 1, NULL);
    link_up(&peer, PEER_INDEX, NULL);
    address(&peer, PEER_INDEX, AF_INET, a->v4);
    address(&peer, PEER_INDEX, AF_INET6, a->v6);
    neighbour(&peer, PEER_INDEX, AF_INET, gateway4, a->host_mac);
    neighbour(&peer, PEER_INDEX, AF_INET6, gateway6, a->host_mac);
    route(&peer, PEER_INDEX, AF_INET, NULL, gateway4);
    route(&peer, PEER_INDEX, AF_INET6, NULL, gateway6);
    exchange(inside, &peer, "the agent's side");
}

/* ---- nftables: one element per set, all in one transaction ---- */

static void nft_edge(struct batch *b, unsigned type)
{
    struct nfgenmsg *m = begin(b, type, 0, sizeof *m);
    m->res_id = htons(NFNL_SUBSYS_NFTABLES);
    end(b);
}

static void nft_element(struct batch *b, unsigned op, const char *table, const char *set, const struct addresses *a,
                        const unsigned char *ip, size_t size)
{
    unsigned flags = op == NFT_MSG_NEWSETELEM ? NLM_F_CREATE : 0;
    unsigned char key[IFNAMSIZ + 16] = {0};
    struct nfgenmsg *m = begin(b, NFNL_SUBSYS_NFTABLES << 8 | op, flags, sizeof *m);
    m->nfgen_family = 1; /* NFPROTO_INET */
    attr_text(b, NFTA_SET_ELEM_LIST_TABLE, table);
    attr_text(b, NFTA_SET_ELEM_LIST_SET, set);
    memcpy(key, a->host_name, strlen(a->host_name));
    memcpy(key + IFNAMSIZ, ip, size);
    struct nlattr *list = nest(b, NLA_F_NESTED | NFTA_SET_ELEM_LIST_ELEMENTS), *elem = nest(b, NLA_F_NESTED | NFTA_LIST_ELEM);
    struct nlattr *data = nest(b, NLA_F_NESTED | NFTA_SET_ELEM_KEY);
    attr(b, NFTA_DATA_VALUE, key, IFNAMSIZ + size);
    nest_end(b, data);
    nest_end(b, elem);
    nest_end(b, list);
    end(b);
}

static void nft_change(const struct floor_config *config, unsigned op, const struct addresses *a)
{
    struct batch b = {.used = 0};
    nft_edge(&b, NFNL_MSG_BATCH_BEGIN);
    nft_element(&b, op, config->nft_table, "pin4", a, a->v4, 4);
    nft_element(&b, op, config->nft_table, "pin6", a, a->v6, 16);
    nft_edge(&b, NFNL_MSG_BATCH_END);
    exchange(host_nft, &b, "nft elements");
}

/* ---- the three entrances ---- */

void net_open(const struct floor_config *config)
{
    (void)config;
    host_route = netlink_socket(NETLINK_ROUTE);
    host_nft = netlink_socket(NETLINK_NETFILTER);
}

void net_create(const struct floor_config *config, struct floor_start *start)
{
    struct addresses a;
    derive(&a, start->slot);
    check(unshare(CLONE_NEWNET), "unshare", "CLONE_NEWNET");
    start->netns = check(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), "open", "ns/net");
    int inside = netlink_socket(NETLINK_ROUTE);
    write_at(AT_FDCWD, "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    check(setns(config->host_netns, CLONE_NEWNET), "setns", "host netns");
    both_sides(&a, start->netns, inside);
    close(inside);
    nft_change(config, NFT_MSG_NEWSETELEM, &a);
}

/* The pair itself goes with its namespace, in the kernel's own batched clean-up: RTM_DELLINK would wait ~25 ms for grace periods. */
void net_destroy(const struct floor_config *config, const struct floor_start *start)
{
    struct addresses a;
    derive(&a, start->slot);
    nft_change(config, NFT_MSG_DELSETELEM, &a);
}
