// Integer and bit instructions against host arithmetic, on the edges of their types.
#include <algorithm>

#include "support.cuh"

using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

#define BINARY(name, T, r, op, expression) \
  PTX_TEST2(Integer, name, T, r, T, r, T, r, op " %0, %1, %2;", expression)
#define UNARY(name, R, rr, A, ra, op, expression) \
  PTX_TEST1(Integer, name, R, rr, A, ra, op " %0, %1;", expression)

BINARY(add_s16, i16, "h", "add.s16", i16(a + b))
BINARY(add_u32, u32, "r", "add.u32", a + b)
BINARY(add_s32, i32, "r", "add.s32", i32(u32(a) + u32(b)))
BINARY(add_s64, i64, "l", "add.s64", i64(u64(a) + u64(b)))
BINARY(add_sat_s32, i32, "r", "add.sat.s32", i32(std::clamp<i64>(i64(a) + b, INT32_MIN, INT32_MAX)))
BINARY(sub_sat_s32, i32, "r", "sub.sat.s32", i32(std::clamp<i64>(i64(a) - b, INT32_MIN, INT32_MAX)))
BINARY(sub_u16, u16, "h", "sub.u16", u16(a - b))
BINARY(sub_u64, u64, "l", "sub.u64", a - b)
BINARY(mul_lo_s16, i16, "h", "mul.lo.s16", i16(i32(a) * b))
BINARY(mul_lo_u32, u32, "r", "mul.lo.u32", a* b)
BINARY(mul_lo_s64, i64, "l", "mul.lo.s64", i64(u64(a) * u64(b)))
BINARY(mul_hi_s32, i32, "r", "mul.hi.s32", i32((i64(a) * b) >> 32))
BINARY(mul_hi_u32, u32, "r", "mul.hi.u32", u32((u64(a) * b) >> 32))
BINARY(mul_hi_s64, i64, "l", "mul.hi.s64", i64((__int128(a) * b) >> 64))
BINARY(mul_hi_u64, u64, "l", "mul.hi.u64", u64((static_cast<unsigned __int128>(a) * b) >> 64))
BINARY(mul24_s32, i32, "r", "mul24.lo.s32",
       i32(u32(i32(u32(a) << 8) >> 8) * u32(i32(u32(b) << 8) >> 8)))
PTX_TEST2(Integer, mul_wide_s32, i64, "l", i32, "r", i32, "r", "mul.wide.s32 %0, %1, %2;",
          i64(a) * b)
PTX_TEST2(Integer, mul_wide_u32, u64, "l", u32, "r", u32, "r", "mul.wide.u32 %0, %1, %2;",
          u64(a) * b)
PTX_TEST2(Integer, mul_wide_s16, i32, "r", i16, "h", i16, "h", "mul.wide.s16 %0, %1, %2;",
          i32(a) * b)
PTX_TEST2(Integer, mul_wide_u16, u32, "r", u16, "h", u16, "h", "mul.wide.u16 %0, %1, %2;",
          u32(a) * b)
PTX_TEST3(Integer, mad_lo_s32, i32, "r", i32, "r", i32, "r", i32, "r", "mad.lo.s32 %0, %1, %2, %3;",
          i32(u32(a) * u32(b) + u32(c)))
PTX_TEST3(Integer, mad_hi_u32, u32, "r", u32, "r", u32, "r", u32, "r", "mad.hi.u32 %0, %1, %2, %3;",
          u32((u64(a) * b) >> 32) + c)
PTX_TEST3(Integer, mad_wide_u32, u64, "l", u32, "r", u32, "r", u64, "l",
          "mad.wide.u32 %0, %1, %2, %3;", u64(a) * b + c)
PTX_TEST3(Integer, mad_wide_s32, i64, "l", i32, "r", i32, "r", i64, "l",
          "mad.wide.s32 %0, %1, %2, %3;", i64(u64(i64(a) * b) + u64(c)))
PTX_TEST3(Integer, sad_s32, i32, "r", i32, "r", i32, "r", i32, "r", "sad.s32 %0, %1, %2, %3;",
          i32(u32(c) + (a < b ? u32(b) - u32(a) : u32(a) - u32(b))))
BINARY(div_u32, u32, "r", "div.u32", b == 0 ? ~0U : a / b)
BINARY(div_s32, i32, "r", "div.s32", b == 0 ? -1 : b == -1 ? i32(0U - u32(a)) : a / b)
BINARY(rem_s32, i32, "r", "rem.s32", b == 0 ? a : b == -1 ? 0 : a % b)
BINARY(div_u64, u64, "l", "div.u64", b == 0 ? ~u64(0) : a / b)
BINARY(rem_u64, u64, "l", "rem.u64", b == 0 ? a : a % b)
BINARY(min_s16, i16, "h", "min.s16", std::min(a, b))
BINARY(max_u16, u16, "h", "max.u16", std::max(a, b))
BINARY(min_s32, i32, "r", "min.s32", std::min(a, b))
BINARY(max_u32, u32, "r", "max.u32", std::max(a, b))
BINARY(max_s64, i64, "l", "max.s64", std::max(a, b))
UNARY(abs_s32, i32, "r", i32, "r", "abs.s32", a < 0 ? i32(0U - u32(a)) : a)
UNARY(neg_s32, i32, "r", i32, "r", "neg.s32", i32(0U - u32(a)))
UNARY(neg_s64, i64, "l", i64, "l", "neg.s64", i64(u64(0) - u64(a)))

BINARY(and_b32, u32, "r", "and.b32", a& b)
BINARY(or_b64, u64, "l", "or.b64", a | b)
BINARY(xor_b16, u16, "h", "xor.b16", u16(a ^ b))
UNARY(not_b32, u32, "r", u32, "r", "not.b32", ~a)
UNARY(not_b16, u16, "h", u16, "h", "not.b16", u16(~a))
UNARY(cnot_b32, u32, "r", u32, "r", "cnot.b32", u32(a == 0))
PTX_TEST2(Integer, shl_b32, u32, "r", u32, "r", u32, "r", "shl.b32 %0, %1, %2;",
          b > 31 ? 0 : a << b)
PTX_TEST2(Integer, shl_b64, u64, "l", u64, "l", u32, "r", "shl.b64 %0, %1, %2;",
          b > 63 ? 0 : a << b)
PTX_TEST2(Integer, shl_b16, u16, "h", u16, "h", u32, "r", "shl.b16 %0, %1, %2;",
          b > 15 ? u16(0) : u16(a << b))
PTX_TEST2(Integer, shr_u32, u32, "r", u32, "r", u32, "r", "shr.u32 %0, %1, %2;",
          b > 31 ? 0 : a >> b)
PTX_TEST2(Integer, shr_s32, i32, "r", i32, "r", u32, "r", "shr.s32 %0, %1, %2;",
          a >> std::min(b, 31U))
PTX_TEST2(Integer, shr_s64, i64, "l", i64, "l", u32, "r", "shr.s64 %0, %1, %2;",
          a >> std::min(b, 63U))
PTX_TEST2(Integer, shr_s16, i16, "h", i16, "h", u32, "r", "shr.s16 %0, %1, %2;",
          i16(a >> std::min(b, 15U)))
PTX_TEST3(Integer, shf_l_wrap, u32, "r", u32, "r", u32, "r", u32, "r",
          "shf.l.wrap.b32 %0, %1, %2, %3;", u32((((u64(b) << 32) | a) << (c & 31)) >> 32))
PTX_TEST3(Integer, shf_r_clamp, u32, "r", u32, "r", u32, "r", u32, "r",
          "shf.r.clamp.b32 %0, %1, %2, %3;", u32(((u64(b) << 32) | a) >> std::min(c, 32U)))
UNARY(popc_b32, u32, "r", u32, "r", "popc.b32", u32(__builtin_popcount(a)))
UNARY(popc_b64, u32, "r", u64, "l", "popc.b64", u32(__builtin_popcountll(a)))
UNARY(clz_b32, u32, "r", u32, "r", "clz.b32", a == 0 ? 32 : u32(__builtin_clz(a)))
UNARY(clz_b64, u32, "r", u64, "l", "clz.b64", a == 0 ? 64 : u32(__builtin_clzll(a)))
UNARY(bfind_u32, u32, "r", u32, "r", "bfind.u32", a == 0 ? ~0U : 31 - u32(__builtin_clz(a)))
UNARY(bfind_s32, u32, "r", i32, "r", "bfind.s32",
      (a < 0 ? ~a : a) == 0 ? ~0U : 31 - u32(__builtin_clz(u32(a < 0 ? ~a : a))))
UNARY(bfind_shift, u32, "r", u32, "r", "bfind.shiftamt.u32", a == 0 ? ~0U : u32(__builtin_clz(a)))

u32 reversed(u32 a) {
  u32 r = 0;
  for (int i = 0; i < 32; ++i) r |= ((a >> i) & 1) << (31 - i);
  return r;
}
UNARY(brev_b32, u32, "r", u32, "r", "brev.b32", reversed(a))

u64 field(u64 a, u32 position, u32 length, int width, bool sign) {
  position &= 255;
  length &= 255;
  u64 result = 0;
  const u32 top = std::min<u32>(position + length - 1, u32(width - 1));
  const bool s = sign && length != 0 && ((a >> top) & 1) != 0;
  for (u32 i = 0; i < u32(width); ++i) {
    const bool inside = i < length && position + i < u32(width);
    if (inside ? ((a >> (position + i)) & 1) != 0 : s) result |= u64(1) << i;
  }
  return result;
}
PTX_TEST3(Integer, bfe_u32, u32, "r", u32, "r", u32, "r", u32, "r", "bfe.u32 %0, %1, %2, %3;",
          u32(field(a, b, c, 32, false)))
PTX_TEST3(Integer, bfe_s32, u32, "r", u32, "r", u32, "r", u32, "r", "bfe.s32 %0, %1, %2, %3;",
          u32(field(a, b, c, 32, true)))
PTX_TEST3(Integer, bfe_s64, u64, "l", u64, "l", u32, "r", u32, "r", "bfe.s64 %0, %1, %2, %3;",
          field(a, b, c, 64, true))
u32 inserted(u32 f, u32 base, u32 position, u32 length) {
  for (u32 i = 0; i < (length & 255); ++i)
    if ((position & 255) + i < 32) {
      const u32 bit = 1U << ((position & 255) + i);
      base = ((f >> i) & 1) ? base | bit : base & ~bit;
    }
  return base;
}
PTX_TEST3(Integer, bfi_b32, u32, "r", u32, "r", u32, "r", u32, "r",
          "{ .reg.b32 n; and.b32 n, %3, 40; bfi.b32 %0, %1, 0x5a5a5a5a, %2, n; }",
          inserted(a, 0x5a5a5a5aU, b, c & 40))
u32 mask_from(u32 position, u32 length) {
  position = std::min(position, 32U);
  length = std::min(length, 32U);
  return u32(((u64(1) << length) - 1) << position);
}
BINARY(bmsk_clamp, u32, "r", "bmsk.clamp.b32", mask_from(a, b))
u32 permuted(u32 a, u32 b, u32 selector) {
  const u64 both = (u64(b) << 32) | a;
  u32 r = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 n = (selector >> (4 * i)) & 15;
    u32 byte = u32(both >> (8 * (n & 7))) & 255;
    if (n & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * i);
  }
  return r;
}
PTX_TEST3(Integer, prmt_b32, u32, "r", u32, "r", u32, "r", u32, "r", "prmt.b32 %0, %1, %2, %3;",
          permuted(a, b, c))
PTX_TEST3(Integer, lop3_xor3, u32, "r", u32, "r", u32, "r", u32, "r",
          "lop3.b32 %0, %1, %2, %3, 0x96;", a ^ b ^ c)
PTX_TEST3(Integer, lop3_select, u32, "r", u32, "r", u32, "r", u32, "r",
          "lop3.b32 %0, %1, %2, %3, 0xca;", (a & b) | (~a & c))
PTX_TEST3(Integer, lop3_and_or, u32, "r", u32, "r", u32, "r", u32, "r",
          "lop3.b32 %0, %1, %2, %3, 0xf8;", a | (b & c))
i32 dot(u32 a, u32 b, i32 c) {
  i64 sum = c;
  for (int i = 0; i < 4; ++i)
    sum += i64(static_cast<std::int8_t>(a >> (8 * i))) * static_cast<std::int8_t>(b >> (8 * i));
  return i32(sum);
}
PTX_TEST3(Integer, dp4a_s32, i32, "r", u32, "r", u32, "r", i32, "r", "dp4a.s32.s32 %0, %1, %2, %3;",
          dot(a, b, c))

// 64 + 64 bits in 32-bit steps: the carry goes from instruction to instruction.
PTX_TEST2(Integer, add_with_carry, u64, "l", u64, "l", u64, "l",
          "{ .reg .b32 a0, a1, b0, b1; mov.b64 {a0, a1}, %1; mov.b64 {b0, b1}, %2;"
          " add.cc.u32 a0, a0, b0; addc.u32 a1, a1, b1; mov.b64 %0, {a0, a1}; }",
          a + b)
PTX_TEST2(Integer, sub_with_borrow, u64, "l", u64, "l", u64, "l",
          "{ .reg .b32 a0, a1, b0, b1; mov.b64 {a0, a1}, %1; mov.b64 {b0, b1}, %2;"
          " sub.cc.u32 a0, a0, b0; subc.u32 a1, a1, b1; mov.b64 %0, {a0, a1}; }",
          a - b)
PTX_TEST2(Integer, product_by_parts, u64, "l", u64, "l", u64, "l",
          "{ .reg .b32 a0, a1, b0, b1, l, h; mov.b64 {a0, a1}, %1; mov.b64 {b0, b1}, %2;"
          " mul.lo.u32 l, a0, b0; mul.hi.u32 h, a0, b0; mad.lo.u32 h, a0, b1, h;"
          " mad.lo.u32 h, a1, b0, h; mov.b64 %0, {l, h}; }",
          a* b)

// Comparisons, selection, and predicates of predicates.
#define COMPARE(name, T, r, op, expression)      \
  PTX_TEST2(Compare, name, u32, "r", T, r, T, r, \
            "{ .reg .pred p; setp." op " p, %1, %2; selp.u32 %0, 1, 0, p; }", u32(expression))
COMPARE(lt_s32, i32, "r", "lt.s32", a < b)
COMPARE(lt_u32, u32, "r", "lt.u32", a < b)
COMPARE(lo_u32, u32, "r", "lo.u32", a < b)
COMPARE(hs_u64, u64, "l", "hs.u64", a >= b)
COMPARE(ge_s64, i64, "l", "ge.s64", a >= b)
COMPARE(eq_b16, u16, "h", "eq.b16", a == b)
COMPARE(gt_s16, i16, "h", "gt.s16", a > b)
COMPARE(ne_b64, u64, "l", "ne.b64", a != b)
COMPARE(lt_f32, float, "f", "lt.f32", a < b)
COMPARE(ltu_f32, float, "f", "ltu.f32", !(a >= b))
COMPARE(ne_f32, float, "f", "ne.f32", a<b || a> b)
COMPARE(neu_f32, float, "f", "neu.f32", a != b)
COMPARE(equ_f64, double, "d", "equ.f64", !(a < b || a > b))
COMPARE(num_f32, float, "f", "num.f32", a == a && b == b)
COMPARE(nan_f64, double, "d", "nan.f64", a != a || b != b)
PTX_TEST3(Compare, combined, u32, "r", i32, "r", i32, "r", i32, "r",
          "{ .reg .pred p, q, c; setp.gt.s32 c, %3, 10; setp.lt.and.s32 p|q, %1, %2, c;"
          " selp.u32 %0, 1, 0, p; @q or.b32 %0, %0, 2; xor.pred p, p, q; not.pred c, c;"
          " and.pred q, p, !c; @q or.b32 %0, %0, 4; }",
          u32(a<b && c> 10) | (!(a < b) && c > 10 ? 2U : 0U) | (c > 10 ? 4U : 0U))
PTX_TEST3(Compare, slct_s32, u32, "r", u32, "r", u32, "r", i32, "r", "slct.b32.s32 %0, %1, %2, %3;",
          c >= 0 ? a : b)
PTX_TEST2(Compare, set_u32_f32, u32, "r", float, "f", float, "f", "set.lt.u32.f32 %0, %1, %2;",
          a < b ? ~0U : 0U)
PTX_TEST2(Compare, set_f32_s32, float, "f", i32, "r", i32, "r", "set.ge.f32.s32 %0, %1, %2;",
          a >= b ? 1.0F : 0.0F)
