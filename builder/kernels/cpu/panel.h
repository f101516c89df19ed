// Panel: a few blocks of a packed matrix times some rows of activations, whatever the matrix's format.
//
// Each output element is summed in one order whatever the number of rows: over the whole depth, or, of a quantised
// matrix, within each group and then group by group.
#pragma once

#include "plain_panel.h"
#include "quantised_panel.h"

namespace trierarch {

// `Shape` is the tile's where the processor's byte products do not ask for their own. `errand` may be null.
template <class T, TileShape Shape>
void panel(const Activations<T>& x, const Packed& weight, int64_t block, int64_t num_blocks, Errand* errand,
           Totals totals) {
  if (weight.format == Format::kInt8) return quantised_panel<T, Int8, Shape>(x, weight, block, num_blocks, totals);
  if (weight.format == Format::kInt4) return quantised_panel<T, Int4, Shape>(x, weight, block, num_blocks, totals);
  plain_panel<T, Shape>(x, weight, block, num_blocks, errand, totals);
}

}  // namespace trierarch
