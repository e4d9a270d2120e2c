// Undefined bytes in registers: where they come from, and where they may not go.
//
// They may be copied, computed with and stored, as compilers do with values nobody uses. They may
// not decide a branch, a guard, an address, a vote or a barrier.
#include "machine.hpp"

namespace ptx {

namespace {

constexpr unsigned byte_mask(unsigned bytes) {
  return (1U << bytes) - 1;
}

/// Every bit of the bytes in `mask`.
std::uint64_t widen(unsigned mask) {
  std::uint64_t bits = 0;
  for (unsigned i = 0; i < 8; ++i)
    if ((mask >> i) & 1) bits |= std::uint64_t{0xff} << (8 * i);
  return bits;
}

std::uint8_t narrow(std::uint64_t bits) {
  unsigned mask = 0;
  for (unsigned i = 0; i < 8; ++i)
    if ((bits >> (8 * i)) & 0xff) mask |= 1U << i;
  return static_cast<std::uint8_t>(mask);
}

/// Bytes of `value` that equal `byte`.
unsigned bytes_equal(std::uint64_t value, unsigned byte) {
  unsigned mask = 0;
  for (unsigned i = 0; i < 8; ++i)
    if (((value >> (8 * i)) & 0xff) == byte) mask |= 1U << i;
  return mask;
}

std::uint64_t low_bits(unsigned count) {
  return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

}  // namespace

void warp::set_undefined(std::int32_t row, int lane, std::uint8_t bytes) {
  const auto r = static_cast<std::size_t>(row);
  const lane_mask bit = 1U << lane;
  if (bytes == 0) {
    undefined_lanes_[r] &= ~bit;
    return;
  }
  undefined_lanes_[r] |= bit;
  undefined_bytes_[r * lanes_per_warp + static_cast<std::size_t>(lane)] = bytes;
}

void warp::require_defined(std::int32_t row, lane_mask lanes, unsigned bytes,
                           const char* what) const {
  lane_mask suspects = undefined_lanes(row) & lanes;
  for (; suspects != 0; suspects &= suspects - 1) {
    const int lane = __builtin_ctz(suspects);
    if ((undefined_bytes(row, lane) & byte_mask(bytes)) != 0)
      throw kernel_fault(fault_kind::uninitialised, lane,
                         std::string("an undefined value is used as ") + what);
  }
}

void warp::spread_undefined(const instruction& in, lane_mask lanes) {
  lane_mask any = 0;
  for (int i = 0; i < in.src_count; ++i) any |= undefined_lanes(in.src[i]);
  for (const std::int32_t p : in.pred_src)
    if (p >= 0) any |= undefined_predicate(p);
  any &= lanes;
  if (any == 0) {
    for (int i = 0; i < in.dst_count; ++i) set_defined(in.dst[i], lanes);
    for (const std::int32_t p : in.pred_dst)
      if (p >= 0) set_undefined_predicate(p, lanes, 0);
    return;
  }

  const scalar source = in.source_type != scalar::none ? in.source_type : in.type;
  const unsigned width = size_of(source);
  const unsigned result_width = (in.flags & wide) != 0 ? 8 : size_of(in.type);
  const lane_mask chooser =
      in.pred_src[0] < 0 ? 0 : predicate(in.pred_src[0]) ^ (in.pred_negated[0] ? ~0U : 0U);
  const lane_mask doubt = in.pred_src[0] < 0 ? 0 : undefined_predicate(in.pred_src[0]);
  lane_mask predicate_doubt = 0;
  std::uint8_t result[8][lanes_per_warp] = {};
  for (lane_mask rest = any; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const auto of = [&](int i) {
      // The third operand of mad.wide is as wide as the result.
      const unsigned bytes = i == 2 && (in.flags & wide) != 0 ? 8 : width;
      return i < in.src_count ? undefined_bytes(in.src[i], lane) & byte_mask(bytes) : 0U;
    };
    const auto value = [&](int i) { return this->in(in.src[i]).lane[lane]; };
    unsigned sources = 0;
    for (int i = 0; i < in.src_count; ++i) sources |= of(i);
    std::uint8_t bytes = 0;
    switch (in.undefined) {
      case spread::all:
        bytes = sources != 0 ? 0xff : 0;
        break;
      case spread::upwards:
        bytes = static_cast<std::uint8_t>(sources != 0 ? ~((sources & (~sources + 1)) - 1) : 0);
        break;
      case spread::bytewise:
        bytes = static_cast<std::uint8_t>(sources);
        break;
      case spread::conjunction:
      case spread::disjunction: {
        const unsigned decides = in.undefined == spread::conjunction ? 0 : 0xff;
        const unsigned a = bytes_equal(value(0), decides) & ~of(0);
        const unsigned b = bytes_equal(value(1), decides) & ~of(1);
        bytes = static_cast<std::uint8_t>(sources & ~(a | b));
        break;
      }
      case spread::shift_left:
      case spread::shift_right: {
        if ((undefined_bytes(in.src[1], lane) & 0xf) != 0) {
          bytes = 0xff;
          break;
        }
        const auto amount = static_cast<unsigned>(value(1) & 0xffffffff);
        const std::uint64_t bits = widen(of(0)) & low_bits(8 * width);
        if (in.undefined == spread::shift_left) {
          bytes =
              amount < 8 * width ? narrow((bits << amount) & low_bits(8 * width)) : std::uint8_t{0};
        } else {
          std::uint64_t moved = amount < 64 ? bits >> amount : 0;
          if (is_signed(source) && ((of(0) >> (width - 1)) & 1) != 0)
            moved |= amount < 8 * width ? ~(low_bits(8 * width) >> amount) & low_bits(8 * width)
                                        : low_bits(8 * width);
          bytes = narrow(moved);
        }
        break;
      }
      case spread::convert: {
        unsigned mask = of(0);
        if (is_signed(source) && ((mask >> (width - 1)) & 1) != 0) mask |= 0xffU << width;
        bytes = static_cast<std::uint8_t>(mask & byte_mask(result_width));
        break;
      }
      case spread::select:
        bytes = ((doubt >> lane) & 1) != 0
                    ? std::uint8_t{0xff}
                    : static_cast<std::uint8_t>(of(((chooser >> lane) & 1) != 0 ? 0 : 1));
        break;
      case spread::pack: {
        const unsigned part = result_width / in.src_count;
        unsigned mask = 0;
        for (int i = 0; i < in.src_count; ++i)
          mask |= (undefined_bytes(in.src[i], lane) & byte_mask(part))
                  << (part * static_cast<unsigned>(i));
        bytes = static_cast<std::uint8_t>(mask);
        break;
      }
      case spread::unpack: {
        const unsigned part = width / in.dst_count;
        for (unsigned i = 0; i < in.dst_count; ++i)
          result[i][lane] = static_cast<std::uint8_t>((of(0) >> (part * i)) & byte_mask(part));
        break;
      }
      case spread::permute: {
        if ((undefined_bytes(in.src[2], lane) & 3) != 0) {
          bytes = 0xff;
          break;
        }
        const unsigned both = of(0) | (of(1) << 4);
        unsigned mask = 0;
        for (unsigned i = 0; i < 4; ++i)
          if ((both >> ((value(2) >> (4 * i)) & 7)) & 1) mask |= 1U << i;
        bytes = static_cast<std::uint8_t>(mask);
        break;
      }
      case spread::extract:
      case spread::insert: {
        const int at = in.undefined == spread::extract ? 1 : 2;
        if (((undefined_bytes(in.src[at], lane) | undefined_bytes(in.src[at + 1], lane)) & 0xf) !=
            0) {
          bytes = 0xff;
          break;
        }
        const auto start = static_cast<unsigned>(value(at) & 0xff);
        const std::uint64_t field = low_bits(static_cast<unsigned>(value(at + 1) & 0xff));
        if (in.undefined == spread::extract) {
          bytes = start < 64 && ((widen(of(0)) >> start) & field) != 0 ? 0xff : 0;
        } else {
          const std::uint64_t hole = start < 64 ? field << start : 0;
          const std::uint64_t filled = start < 64 ? (widen(of(0)) & field) << start : 0;
          bytes = narrow((widen(of(1)) & ~hole) | filled);
        }
        break;
      }
    }
    if (in.undefined != spread::unpack)
      for (int i = 0; i < in.dst_count; ++i) result[i][lane] = bytes;
    if (sources != 0) predicate_doubt |= 1U << lane;
  }
  for (int i = 0; i < in.dst_count; ++i) {
    set_defined(in.dst[i], lanes);
    for_lanes(any, [&](int lane) { set_undefined(in.dst[i], lane, result[i][lane]); });
  }
  if (in.pred_dst[0] < 0) return;

  // Predicates: and, or with a defined deciding operand are defined.
  if (in.src_count == 0 && in.pred_src[1] >= 0) {
    const lane_mask b = predicate(in.pred_src[1]) ^ (in.pred_negated[1] ? ~0U : 0U);
    const lane_mask other = undefined_predicate(in.pred_src[1]);
    predicate_doubt = doubt | other;
    if (in.undefined == spread::conjunction)
      predicate_doubt &= ~((~chooser & ~doubt) | (~b & ~other));
    if (in.undefined == spread::disjunction)
      predicate_doubt &= ~((chooser & ~doubt) | (b & ~other));
  } else if (in.undefined == spread::conjunction) {
    predicate_doubt = (predicate_doubt & chooser) | doubt;
  } else if (in.undefined == spread::disjunction) {
    predicate_doubt = (predicate_doubt & ~chooser) | doubt;
  } else {
    predicate_doubt |= doubt;
  }
  for (const std::int32_t p : in.pred_dst)
    if (p >= 0) set_undefined_predicate(p, lanes, predicate_doubt & lanes);
}

}  // namespace ptx
