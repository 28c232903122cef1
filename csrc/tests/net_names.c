/*
 * Addresses of the network without a kernel
 *
 * There is one host, which is all of 127.0.0.0/8 and ::1, and also what nobody binds to but
 * everybody may connect to, 0.0.0.0 and ::. 192.0.2.0/24 and 2001:db8::/32, which are for
 * documents, swallow what is sent to them and never answer; to all others there is no route.
 */
#define _GNU_SOURCE
#include "net_inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

static bool is_mapped(const struct net_name *name)
{
    return name->at.any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&name->at.v6.sin6_addr);
}

/* The IPv4 address, in the host's order, of a name that has one. */
static uint32_t v4_of(const struct net_name *name)
{
    uint32_t address = name->at.v4.sin_addr.s_addr;
    if (is_mapped(name))
        memcpy(&address, &name->at.v6.sin6_addr.s6_addr[12], sizeof address);
    return ntohl(address);
}

bool net_is_v4(const struct net_name *name)
{
    return name->at.any.sa_family == AF_INET || is_mapped(name);
}

static void make_v4(struct net_name *name, uint32_t address, in_port_t port)
{
    memset(name, 0, sizeof *name);
    name->length = sizeof name->at.v4;
    name->at.v4.sin_family = AF_INET;
    name->at.v4.sin_port = port;
    name->at.v4.sin_addr.s_addr = htonl(address);
}

static void make_v6(struct net_name *name, const struct in6_addr *address, in_port_t port)
{
    memset(name, 0, sizeof *name);
    name->length = sizeof name->at.v6;
    name->at.v6.sin6_family = AF_INET6;
    name->at.v6.sin6_port = port;
    name->at.v6.sin6_addr = *address;
}

bool net_is_any(const struct net_name *name)
{
    return net_is_v4(name) ? v4_of(name) == INADDR_ANY
                       : IN6_IS_ADDR_UNSPECIFIED(&name->at.v6.sin6_addr);
}

enum net_place net_place_of(const struct net_name *name)
{
    static const uint8_t documents[4] = {0x20, 0x01, 0x0d, 0xb8};
    if (net_is_any(name))
        return NET_PLACE_HERE;
    if (net_is_v4(name)) {
        uint32_t address = v4_of(name);
        if (address >> 24 == 127)
            return NET_PLACE_HERE;
        return address >> 8 == 0xc00002 ? NET_PLACE_SILENT : NET_PLACE_NONE;
    }
    if (IN6_IS_ADDR_LOOPBACK(&name->at.v6.sin6_addr))
        return NET_PLACE_HERE;
    return memcmp(&name->at.v6.sin6_addr, documents, sizeof documents) == 0 ? NET_PLACE_SILENT
                                                                           : NET_PLACE_NONE;
}

bool net_same_port(const struct net_name *one, const struct net_name *other)
{
    /* It lies at the same place in both families. */
    return one->at.v4.sin_port == other->at.v4.sin_port;
}

bool net_same_name(const struct net_name *one, const struct net_name *other)
{
    if (!net_same_port(one, other) || net_is_v4(one) != net_is_v4(other))
        return false;
    if (net_is_v4(one))
        return v4_of(one) == v4_of(other);
    return IN6_ARE_ADDR_EQUAL(&one->at.v6.sin6_addr, &other->at.v6.sin6_addr);
}

void net_name_as(int family, struct net_name *name)
{
    in_port_t port = name->at.v4.sin_port;
    if (family == AF_INET && is_mapped(name))
        make_v4(name, v4_of(name), port);
    if (family == AF_INET6 && name->at.any.sa_family == AF_INET) {
        struct in6_addr address = {.s6_addr = {[10] = 0xff, [11] = 0xff}};
        memcpy(&address.s6_addr[12], &name->at.v4.sin_addr, sizeof name->at.v4.sin_addr);
        make_v6(name, &address, port);
    }
}

/* Has the name be this host's, at its port. */
static void make_loopback(struct net_name *name, int family, bool is_v4)
{
    in_port_t port = name->at.v4.sin_port;
    struct in6_addr loopback = IN6ADDR_LOOPBACK_INIT;
    if (is_v4)
        make_v4(name, INADDR_LOOPBACK, port);
    else
        make_v6(name, &loopback, port);
    net_name_as(family, name);
}

void net_source_name(struct net_file *file, const struct net_name *to, struct net_name *name)
{
    net_own_name(file, name);
    if (name->length > 0 && !net_is_any(name))
        return;
    make_loopback(name, file->family, net_is_v4(to));
}

int net_check_name(struct net_file *file, const struct sockaddr *name, socklen_t length,
                   struct net_name *to)
{
    memset(to, 0, sizeof *to);
    if (file->family == AF_INET && length < sizeof to->at.v4)
        return -EINVAL;
    if (file->family == AF_INET6 && name->sa_family == AF_INET6 && length < 24)
        return -EINVAL; /* RFC 2133's, without the scope */
    if (name->sa_family != AF_INET && name->sa_family != AF_INET6)
        return -EAFNOSUPPORT;
    if (file->family == AF_INET && name->sa_family != AF_INET)
        return -EAFNOSUPPORT;
    if (name->sa_family == AF_INET && length < sizeof to->at.v4)
        return -EINVAL;
    to->length = name->sa_family == AF_INET ? sizeof to->at.v4 : sizeof to->at.v6;
    memcpy(&to->at, name, length < to->length ? length : to->length);
    if (net_is_v4(to) && file->family == AF_INET6 &&
        net_option(file, IPPROTO_IPV6, IPV6_V6ONLY) == 1)
        return -ENETUNREACH;
    net_name_as(file->family, to);
    if (net_is_any(to))
        make_loopback(to, file->family, net_is_v4(to));
    return 0;
}
